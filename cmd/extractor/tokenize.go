package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/featuremill/featuremill/adapters/tokenizer"
)

// tokenizeCmd shows how a tokenizer reads texts, to hold against Hugging Face's own.
type tokenizeCmd struct {
	Tokenizer string `required:"" placeholder:"PATH" help:"A tokenizer.json, a model folder that has one, or a .gguf file."`
	In        string `default:"-" placeholder:"FILE" help:"JSON lines with a \"text\" each; - is standard input."`
	Out       string `default:"-" placeholder:"FILE" help:"Where the JSON lines with ids, offsets (in code points) and ids_special go; - is standard output."`
}

// Help is shown by kong below the flags.
func (tokenizeCmd) Help() string {
	return `Writes a line for each line of the input:

  {"text": "Hello world"}  →  {"ids":[19556,905],"offsets":[[0,5],[5,11]],"ids_special":[19556,905]}

ids are without, ids_special with the special tokens that the tokenizer adds by itself, such as a BOS. Offsets belong to ids.`
}

// tokenised is a line of the output.
type tokenised struct {
	IDs        []int32    `json:"ids"`
	Offsets    [][2]int32 `json:"offsets"`
	IDsSpecial []int32    `json:"ids_special"`
}

// Run reads, encodes and writes line after line.
func (c *tokenizeCmd) Run(ctx context.Context) (err error) {
	tk, err := tokenizer.Load(c.Tokenizer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tk.Close()) }()
	in, out := os.Stdin, os.Stdout
	if c.In != "-" {
		if in, err = os.Open(c.In); err != nil {
			return err
		}
		defer in.Close()
	}
	if c.Out != "-" {
		if out, err = os.Create(c.Out); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
	}
	return tokeniseLines(ctx, tk, in, out)
}

func tokeniseLines(ctx context.Context, tk *tokenizer.Tokenizer, in io.Reader, out io.Writer) error {
	reader, writer := bufio.NewReaderSize(in, 1<<20), bufio.NewWriter(out)
	encoder := json.NewEncoder(writer)
	for line := 1; ; line++ {
		data, readErr := reader.ReadBytes('\n')
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return fmt.Errorf("read line %d: %w", line, readErr)
		}
		if data = bytes.TrimSpace(data); len(data) > 0 {
			answer, err := tokeniseLine(tk, data)
			if err != nil {
				return errors.Join(fmt.Errorf("line %d: %w", line, err), writer.Flush())
			}
			if err := encoder.Encode(answer); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if readErr != nil || ctx.Err() != nil {
			return errors.Join(ctx.Err(), writer.Flush())
		}
		if reader.Buffered() == 0 {
			if err := writer.Flush(); err != nil { // somebody may be waiting for the answer before writing on
				return fmt.Errorf("write: %w", err)
			}
		}
	}
}

func tokeniseLine(tk *tokenizer.Tokenizer, line []byte) (tokenised, error) {
	var row struct {
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(line, &row); err != nil {
		return tokenised{}, fmt.Errorf(`want {"text": "…"}: %w`, err)
	}
	if row.Text == nil {
		return tokenised{}, errors.New(`want {"text": "…"}: there is no "text"`)
	}
	plain, err := tk.Encode(*row.Text, false)
	if err != nil {
		return tokenised{}, err
	}
	full, err := tk.Encode(*row.Text, true)
	if err != nil {
		return tokenised{}, err
	}
	return tokenised{IDs: plain.IDs, Offsets: plain.Offsets, IDsSpecial: full.IDs}, nil
}
