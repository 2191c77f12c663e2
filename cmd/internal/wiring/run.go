package wiring

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/dig"
	"go.uber.org/fx"
)

// RunUntil runs a program until ctx ends or a part of it fails.
func RunUntil(ctx context.Context, app *fx.App) error {
	if err := app.Err(); err != nil {
		return fmt.Errorf("start: %w", dig.RootCause(err))
	}
	start, cancel := context.WithTimeout(ctx, app.StartTimeout())
	defer cancel()
	if err := app.Start(start); err != nil {
		return fmt.Errorf("start: %w", dig.RootCause(err))
	}
	var failed error
	select {
	case <-ctx.Done():
	case s := <-app.Wait():
		if s.ExitCode != 0 {
			failed = errors.New("a part of the program ended; its log says why")
		}
	}
	stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
	defer cancelStop()
	return errors.Join(failed, app.Stop(stop))
}
