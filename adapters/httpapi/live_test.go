package httpapi

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOneLookServesAllAndHoldsUpNobodyWhoCanShowTheLast(t *testing.T) {
	t.Parallel()
	begun, answers := make(chan struct{}), make(chan map[string][]byte)
	l := newLive(func(ctx context.Context) (map[string][]byte, error) {
		begun <- struct{}{}
		select {
		case frames := <-answers:
			return frames, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	type answer struct {
		frames map[string][]byte
		err    error
	}
	ask := func(ctx context.Context, fresh time.Duration) <-chan answer {
		out := make(chan answer, 1)
		go func() {
			frames, err := l.now(ctx, fresh)
			out <- answer{frames, err}
		}()
		return out
	}
	one, two := map[string][]byte{"x": []byte("1")}, map[string][]byte{"x": []byte("2")}

	first := ask(t.Context(), time.Hour)
	<-begun
	second := ask(t.Context(), time.Hour) // there is nothing to show yet: it waits for the first
	impatient, cancel := context.WithCancel(t.Context())
	third := ask(impatient, time.Hour)
	cancel()
	require.ErrorIs(t, (<-third).err, context.Canceled)
	answers <- one
	require.Equal(t, answer{one, nil}, <-first)
	require.Equal(t, answer{one, nil}, <-second, "by the same look")

	looks := ask(t.Context(), 0)
	<-begun
	frames, err := l.now(t.Context(), 0) // while somebody looks
	require.NoError(t, err)
	require.Equal(t, one, frames)
	answers <- two
	require.Equal(t, answer{two, nil}, <-looks)
	frames, err = l.now(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, two, frames)

	gone, cancel := context.WithCancel(t.Context())
	broken := ask(gone, 0)
	<-begun
	cancel()
	require.True(t, errors.Is((<-broken).err, context.Canceled))
	again := ask(t.Context(), 0)
	<-begun
	answers <- one
	require.Equal(t, answer{one, nil}, <-again, "whoever went away while it looked holds up nobody")
}
