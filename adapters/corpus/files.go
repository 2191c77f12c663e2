package corpus

// Files returns the paths of the dataset's files in the order of their rows.
func (d *Dataset) Files() []string {
	if len(d.files) == 1 && d.pathOf(0) == d.path {
		return []string{d.path}
	}
	paths, _, err := dataFiles(d.path)
	if err != nil {
		return nil
	}
	return paths
}
