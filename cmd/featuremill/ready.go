package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// readyCmd asks a running API whether it can answer, for health checks of an image that has no other program.
type readyCmd struct {
	API string `name:"api" help:"Address of the API." default:"http://127.0.0.1:8000" env:"FEATUREMILL_API"`
}

func (c *readyCmd) Run(ctx context.Context) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.API, "/")+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the API does not answer at %s: %w", c.API, err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the API at %s is not ready: %s", c.API, resp.Status)
	}
	return nil
}
