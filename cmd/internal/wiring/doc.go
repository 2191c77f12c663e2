// Package wiring puts the parts together: it is the only package that sees all of them. Each file is
// an fx module; what starts in a constructor or a hook is stopped by a hook, in the reverse order.
package wiring
