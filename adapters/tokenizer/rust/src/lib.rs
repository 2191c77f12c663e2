//! C interface to the `tokenizers` crate: load, encode with code-point offsets, read the vocabulary.
//! Every entry point catches panics: none may unwind into Go.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;
use std::{ptr, slice};
use tokenizers::Tokenizer;

/// Bytes handed to the caller, freed by `fm_bytes_free`.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    len: usize,
}

/// One encoded text. The three arrays have `len` entries (`offsets` has 2 × `len`) and are views into
/// `owner`, freed by `fm_encoding_free`.
#[repr(C)]
pub struct CEncoding {
    ids: *const u32,
    offsets: *const u32,
    special: *const u32,
    len: usize,
    owner: *mut Owned,
}

pub struct Owned {
    ids: Vec<u32>,
    offsets: Vec<u32>,
    special: Vec<u32>,
}

fn leak(bytes: Vec<u8>) -> Bytes {
    let mut boxed = bytes.into_boxed_slice();
    let view = Bytes { data: boxed.as_mut_ptr(), len: boxed.len() };
    std::mem::forget(boxed);
    view
}

/// Runs `f`; an error or a panic lands as text in `failure`, and `false` is returned.
fn guarded(failure: *mut Bytes, f: impl FnOnce() -> Result<(), String>) -> bool {
    static QUIET: Once = Once::new();
    // The default hook prints a backtrace to stderr; the message reaches Go as an error instead.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let message = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return true,
        Ok(Err(message)) => message,
        Err(payload) => match payload.downcast_ref::<String>() {
            Some(text) => format!("panic: {text}"),
            None => format!("panic: {}", payload.downcast_ref::<&str>().unwrap_or(&"unknown")),
        },
    };
    unsafe { ptr::write(failure, leak(message.into_bytes())) };
    false
}

unsafe fn view<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[]; // Go passes nil for an empty slice, which slice::from_raw_parts must not see
    }
    slice::from_raw_parts(data, len)
}

/// Reads a tokenizer.json. Padding and truncation that it may carry are cleared: a corpus does both itself.
///
/// # Safety
/// `json` points to `len` readable bytes; `out` and `failure` are writable.
#[no_mangle]
pub unsafe extern "C" fn fm_tokenizer_new(json: *const u8, len: usize, out: *mut *mut Tokenizer, failure: *mut Bytes) -> bool {
    guarded(failure, || {
        let mut tokenizer = Tokenizer::from_bytes(view(json, len)).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` comes from `fm_tokenizer_new` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn fm_tokenizer_free(tokenizer: *mut Tokenizer) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
}

/// Encodes one text; safe to call from many threads at once. Invalid UTF-8 becomes U+FFFD first.
///
/// # Safety
/// `tokenizer` is live; `text` points to `len` readable bytes; `out` and `failure` are writable.
#[no_mangle]
pub unsafe extern "C" fn fm_encode(
    tokenizer: *const Tokenizer,
    text: *const u8,
    len: usize,
    add_special: bool,
    out: *mut CEncoding,
    failure: *mut Bytes,
) -> bool {
    guarded(failure, || {
        let text = String::from_utf8_lossy(view(text, len));
        let encoding = (*tokenizer).encode_char_offsets(text.as_ref(), add_special).map_err(|e| e.to_string())?;
        let owned = Box::new(Owned {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().iter().flat_map(|&(from, to)| [from as u32, to as u32]).collect(),
            special: encoding.get_special_tokens_mask().to_vec(),
        });
        let (ids, offsets, special, n) = (owned.ids.as_ptr(), owned.offsets.as_ptr(), owned.special.as_ptr(), owned.ids.len());
        *out = CEncoding { ids, offsets, special, len: n, owner: Box::into_raw(owned) };
        Ok(())
    })
}

/// # Safety
/// `owner` comes from `fm_encode` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn fm_encoding_free(owner: *mut Owned) {
    drop(Box::from_raw(owner));
}

/// Writes the vocabulary as records of id (u32), special (u8), length (u32), piece; integers little-endian.
///
/// # Safety
/// `tokenizer` is live; `out` and `failure` are writable.
#[no_mangle]
pub unsafe extern "C" fn fm_vocabulary(tokenizer: *const Tokenizer, out: *mut Bytes, failure: *mut Bytes) -> bool {
    guarded(failure, || {
        let added = (*tokenizer).get_added_tokens_decoder();
        let mut records = Vec::new();
        for (piece, id) in (*tokenizer).get_vocab(true) {
            let special = added.get(&id).is_some_and(|token| token.special);
            records.extend_from_slice(&id.to_le_bytes());
            records.push(special as u8);
            records.extend_from_slice(&(piece.len() as u32).to_le_bytes());
            records.extend_from_slice(piece.as_bytes());
        }
        *out = leak(records);
        Ok(())
    })
}

/// # Safety
/// `bytes` comes from this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn fm_bytes_free(bytes: Bytes) {
    drop(Box::from_raw(ptr::slice_from_raw_parts_mut(bytes.data, bytes.len)));
}
