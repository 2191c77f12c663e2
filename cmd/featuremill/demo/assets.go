// Package demo holds what the demo brings along: an SAE for SmolLM2-135M-Instruct that train_sae.py
// trained, Python's result for one sequence (parity.py), and the script that fetches model and text.
package demo

import "embed"

// Files are sae/, parity.json, parity.safetensors and fetch.sh.
//
//go:embed sae parity.json parity.safetensors fetch.sh
var Files embed.FS
