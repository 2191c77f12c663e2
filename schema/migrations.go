package schema

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the folder of the goose migrations.
func Migrations() fs.FS {
	folder, err := fs.Sub(migrations, "migrations")
	if err != nil { // only an invalid path can fail, and this one is a constant
		return migrations
	}
	return folder
}
