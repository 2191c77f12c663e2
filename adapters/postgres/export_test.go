package postgres

// OpenPool is Open with a configuration of connections that a test may have changed.
var OpenPool = open
