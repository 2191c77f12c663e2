package checkpoint

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// tensorFile is where a format keeps its weights: a safetensors file, an npz archive or a torch file.
type tensorFile interface {
	Path() string
	Names() []string
	Tensor(name string) (Tensor, error) // MissingTensorError where there is none
	Close() error
}

// part is one tensor that an SAE must have: its name and shape in the file, and where it belongs.
type part struct {
	name  string
	why   string // what the shape means: "[d_in, d_sae]"
	into  *[]float32
	shape []int
	flip  bool // the file has the transpose of the canonical form
	wide  int  // above 0: the file has one number, which holds for this many latents
}

// bind fills the parts from a file. Every one must be there with its shape and finite, and the file must hold nothing else but
// what ignored names: a tensor that nobody reads would be a fact that nobody saw.
func (s *SAE) bind(file tensorFile, parts []part, ignored ...string) error {
	c := &s.Config
	var absent, stray []string
	known := map[string]bool{}
	for _, name := range ignored {
		known[name] = true
	}
	names := file.Names()
	for _, p := range parts {
		known[p.name] = true
		if !slices.Contains(names, p.name) {
			absent = append(absent, p.name)
		}
	}
	for _, name := range names {
		if !known[name] {
			stray = append(stray, name)
		}
	}
	kind := c.FileArchitecture
	if kind == "" {
		kind = c.Architecture
	}
	switch {
	case len(absent) > 0:
		return &MissingTensorError{Path: file.Path(), Tensors: absent, Why: fmt.Sprintf("an SAE of the architecture %s has them; the file has %s", kind, abridged(names))}
	case len(stray) > 0:
		return &FormatError{Path: file.Path(), Fact: fmt.Sprintf("an SAE of the architecture %s has no tensor %s", kind, abridged(stray)), Want: "the architecture that these weights belong to"}
	}
	for _, p := range parts {
		values, err := readPart(file, p)
		if err != nil {
			return err
		}
		*p.into = values
		if c.DType == "" && (p.into == &s.WEnc || p.into == &s.WDec) {
			t, err := file.Tensor(p.name)
			if err != nil {
				return err
			}
			c.DType = string(t.DType)
		}
	}
	return nil
}

func readPart(file tensorFile, p part) ([]float32, error) {
	if p.wide > 0 {
		return readScalar(file, p.name, p.wide)
	}
	values, err := readFloats(file, p.name, p.why, p.shape)
	if err != nil {
		return nil, err
	}
	if err := checkFinite(file.Path(), p.name, values); err != nil {
		return nil, err
	}
	if p.flip {
		values = transposed(values, p.shape[0], p.shape[1])
	}
	return values, nil
}

// readScalar reads one number, of shape [] or [1], and repeats it.
func readScalar(file tensorFile, name string, times int) ([]float32, error) {
	t, err := file.Tensor(name)
	if err != nil {
		return nil, err
	}
	if t.Elements() != 1 || len(t.Shape) > 1 {
		return nil, &ShapeError{Path: file.Path(), Tensor: name, Found: t.Shape, Want: []int{}, Why: "one number"}
	}
	values, err := t.Float32()
	if err != nil {
		return nil, inFile(file, err)
	}
	if err := checkFinite(file.Path(), name, values); err != nil {
		return nil, err
	}
	return slices.Repeat(values[:1], times), nil
}

func readFloats(file tensorFile, name, why string, shape []int) ([]float32, error) {
	t, err := file.Tensor(name)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(t.Shape, shape) {
		return nil, &ShapeError{Path: file.Path(), Tensor: name, Found: t.Shape, Want: shape, Why: why}
	}
	values, err := t.Float32()
	return values, inFile(file, err)
}

// inFile says which file a tensor that cannot be used is in.
func inFile(file tensorFile, err error) error {
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		unsupported.Path = file.Path()
	}
	return err
}

// shapeOf gives a tensor's shape, which must have so many dimensions, each at least 1: for files whose configuration leaves
// sizes to the weights.
func shapeOf(file tensorFile, name string, dimensions int, why string) ([]int, error) {
	t, err := file.Tensor(name)
	if err != nil {
		return nil, err
	}
	if len(t.Shape) != dimensions || slices.Contains(t.Shape, 0) {
		return nil, &FormatError{Path: file.Path(), Fact: fmt.Sprintf("tensor %s has the shape %v", name, t.Shape), Want: why}
	}
	for _, d := range t.Shape {
		if d > maxSize {
			return nil, &FormatError{Path: file.Path(), Fact: fmt.Sprintf("tensor %s has the shape %v", name, t.Shape), Want: fmt.Sprintf("dimensions of at most %d", maxSize)}
		}
	}
	return t.Shape, nil
}

// transposed copies a [rows, cols] matrix into [cols, rows], in tiles that stay in the cache, a band of rows for each core.
func transposed(in []float32, rows, cols int) []float32 {
	const tile = 32
	out := make([]float32, len(in))
	band := func(from, to int) {
		for r0 := from; r0 < to; r0 += tile {
			for c0 := 0; c0 < cols; c0 += tile {
				for r := r0; r < min(r0+tile, to); r++ {
					for c := c0; c < min(c0+tile, cols); c++ {
						out[c*rows+r] = in[r*cols+c]
					}
				}
			}
		}
	}
	workers := runtime.GOMAXPROCS(0)
	if len(in) < 1<<16 || workers == 1 {
		band(0, rows)
		return out
	}
	var wg sync.WaitGroup
	step := (rows + workers - 1) / workers
	for from := 0; from < rows; from += step {
		wg.Go(func() { band(from, min(from+step, rows)) })
	}
	wg.Wait()
	return out
}
