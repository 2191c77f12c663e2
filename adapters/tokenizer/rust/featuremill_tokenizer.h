// C interface of the Rust library in this folder; see src/lib.rs for what each function promises.
#ifndef FEATUREMILL_TOKENIZER_H
#define FEATUREMILL_TOKENIZER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_tokenizer fm_tokenizer;
typedef struct fm_owned fm_owned;
typedef struct { uint8_t *data; size_t len; } fm_bytes;
typedef struct {
	const uint32_t *ids;
	const uint32_t *offsets;
	const uint32_t *special;
	size_t len;
	fm_owned *owner;
} fm_encoding;

bool fm_tokenizer_new(const uint8_t *json, size_t len, fm_tokenizer **out, fm_bytes *failure);
void fm_tokenizer_free(fm_tokenizer *tokenizer);
bool fm_encode(const fm_tokenizer *tokenizer, const uint8_t *text, size_t len, bool add_special, fm_encoding *out, fm_bytes *failure);
void fm_encoding_free(fm_owned *owner);
bool fm_vocabulary(const fm_tokenizer *tokenizer, fm_bytes *out, fm_bytes *failure);
void fm_bytes_free(fm_bytes bytes);
#endif
