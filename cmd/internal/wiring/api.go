package wiring

import (
	"go.uber.org/fx"
)

// APIConfig says where the API listens and who may use it.
type APIConfig struct {
	Listen string `help:"Address that the API listens on. Anything but this machine needs a token." default:"127.0.0.1:8000" env:"FEATUREMILL_LISTEN"`
	Token  string `help:"Bearer token that the API asks for. Empty: none." env:"FEATUREMILL_TOKEN"`
}

// Address is where the API listens, host:port.
type Address string

// API serves HTTP.
func API(APIConfig) fx.Option { return fx.Options() }
