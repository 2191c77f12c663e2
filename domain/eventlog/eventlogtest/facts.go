package eventlogtest

import (
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// Noted is a fact for tests. It does to the side tables what it says.
type Noted struct {
	Text    string   `json:"text"`
	Effects []Effect `json:"effects,omitempty"`
}

// EventType names the fact.
func (Noted) EventType() string { return "TestNoted" }

// Effect is an eventlog.Effect that can be written as JSON; one field is set.
type Effect struct {
	Reserve          *eventlog.Reserve          `json:",omitempty"`
	Release          *eventlog.Release          `json:",omitempty"`
	RefuseIfReserved *eventlog.RefuseIfReserved `json:",omitempty"`
	OpenWork         *eventlog.OpenWork         `json:",omitempty"`
	CloseWork        *eventlog.CloseWork        `json:",omitempty"`
	CloseAllWork     *eventlog.CloseAllWork     `json:",omitempty"`
}

// Do wraps effects for a Noted.
func Do(effects ...eventlog.Effect) []Effect {
	if len(effects) == 0 {
		return nil // as it is read back
	}
	list := make([]Effect, len(effects))
	for i, e := range effects {
		switch e := e.(type) {
		case eventlog.Reserve:
			list[i].Reserve = &e
		case eventlog.Release:
			list[i].Release = &e
		case eventlog.RefuseIfReserved:
			list[i].RefuseIfReserved = &e
		case eventlog.OpenWork:
			list[i].OpenWork = &e
		case eventlog.CloseWork:
			list[i].CloseWork = &e
		case eventlog.CloseAllWork:
			list[i].CloseAllWork = &e
		}
	}
	return list
}

// Effects is the eventlog.Effects of Noted.
func Effects(_ string, data event.Data) ([]eventlog.Effect, error) {
	noted, ok := data.(Noted)
	if !ok {
		return nil, nil
	}
	var list []eventlog.Effect
	for _, e := range noted.Effects {
		switch {
		case e.Reserve != nil:
			list = append(list, *e.Reserve)
		case e.Release != nil:
			list = append(list, *e.Release)
		case e.RefuseIfReserved != nil:
			list = append(list, *e.RefuseIfReserved)
		case e.OpenWork != nil:
			list = append(list, *e.OpenWork)
		case e.CloseWork != nil:
			list = append(list, *e.CloseWork)
		case e.CloseAllWork != nil:
			list = append(list, *e.CloseAllWork)
		}
	}
	return list, nil
}

// Registry returns a registry that knows Noted and the facts of the log itself.
func Registry() (*event.Registry, error) {
	r := event.NewRegistry()
	if err := event.Register[Noted](r, 1, nil); err != nil {
		return nil, fmt.Errorf("register the facts for tests: %w", err)
	}
	return r, eventlog.Register(r)
}
