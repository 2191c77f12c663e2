package generations

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// Away wraps an error of a database call in eventlog.ErrUnavailable where it is the server's state, or that of the
// connection, and may pass. It is for calls that do nothing but ask the database.
func Away(err error) error {
	if err == nil || errors.Is(err, eventlog.ErrUnavailable) {
		return err
	}
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	var network net.Error
	passes := false
	switch {
	case errors.As(err, &pg):
		for _, class := range []string{"08", "53", "57", "58", "40001", "40P01", "55P03", "25P03", "25P04"} {
			passes = passes || strings.HasPrefix(pg.Code, class)
		}
	default:
		passes = errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
	}
	if !passes {
		return err
	}
	return fmt.Errorf("%w: %w", eventlog.ErrUnavailable, err)
}
