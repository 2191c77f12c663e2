package schema

import "embed"

//go:generate go test . -run TestEventsHaveASchema -update

//go:embed events
var events embed.FS

// Events returns the folder of the events' contracts: {Type}.v{version}.schema.json, the JSON Schema of
// the data, and {Type}.v{version}.json, a sample as it was shipped, which is never edited.
func Events() embed.FS { return events }
