package fold

// Version is the version of what a fold makes. It grows with every change after which equal artifacts, corpus and
// options give other rows: the tables of all extractions are then folded again, beside the ones that are shown.
const Version = 1
