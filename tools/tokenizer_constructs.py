"""Parts of tokenizer.json files, one construct each, and texts that tell them apart (tools/check_tokenizer.py)."""
import json

from tokenizers import pre_tokenizers

TEXTS = [
    "", " ", "a", "Hello world", "hello  World,\tHELLO\n\nworld\r\nend \r\n", "  lead and trail  ",
    "ab12 xyz 3.14 007 a1b2c3",
    "I'm sure they'll say DON'T, we've y'all'd 'S 'ſ", "Ünïcödé café cafe\u0301 e\u0301\u0327 A\u030a Å ǅ Ǆ",
    "Привет, мир! Γειά σου Κόσμε ΣΊΣΥΦΟΣ",
    "你好，世界。hello中国x 々〇", "こんにちは カタカナ ｶﾀｶﾅ 안녕 \u1112\u1161\u11ab", "नमस्ते दुनिया ไทย ำ ิ", "שלום مرحبا ١٢٣ \u064b",
    "😀👍🏽👨‍👩‍👧‍👦🇩🇪❤️ #️⃣", "\u00a0nbsp\u2003em\u3000wide\u180evowel\u0085next\u2028line\u200bzero\u200djoin\u200c\ufeff",
    "\x00\x01\x7f \x9f \ufffd\ufffd", "<s>a</s><|x|> <|x|>b <|x|>\n<|X|>  c the THE then _the_ the",
    "def f(x):\n    return x**2 - x_1 + $a <= {b} ^ c | d ~e `f`\n\n\n", "▁meta ▁▁space▁ Ġ",
    "x" * 20 + " " * 17 + "y" + "\n" * 5 + "\t" * 3,
    "½²³¹ Ⅷ ① ٣ x² ¾", "ﬁ ligature \u1e9b\u0323 \u0344 İıſK ẞß", "\U0001d54f \U00020000 \u0378 \U000e0041 \ue000",
    "aaa aab aba abb bab bba ababab",
    "one-two—three…four/five\\six.seven;eight",
    "\U0001e030\U0002ebf0\U00013460\U00010d50 \u1c89 \U00011de0 \ua7cb new letters",
    "((a)[b]{c}) \"q\" 'q' «q» „q“ !?!?",
    "\u0345\u0363\u1ab0\u20dd marks \u0915\u094d\u0937\u200d",
    "The quick brown fox jumps over the lazy dog. 1,234,567.89",
]
SPLIT_BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def base():
    """Every byte's character and the same behind which a word ends, so that the tokens show where each word ended; the
    named bytes; a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = alphabet + [c + "</w>" for c in alphabet] + [f"<0x{b:02X}>" for b in range(256)]
    merges = [["t", "h"], ["th", "e"], ["l", "l"], ["Ġ", "Ġ"], ["a", "b"], ["1", "2"], ["th", "e</w>"]]
    texts += [left + right for left, right in merges] + ["<unk>"]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": {**BYTES},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
                      "vocab": {text: i for i, text in enumerate(texts)}, "merges": merges}}


def changed(value, change):
    """JSON merge patch (RFC 7386), as nlohmann's merge_patch does it."""
    if not isinstance(change, dict):
        return change
    value = dict(value) if isinstance(value, dict) else {}
    for key, part in change.items():
        if part is None:
            value.pop(key, None)
        else:
            value[key] = changed(value.get(key), part)
    return value


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def pre(*parts, bytes_last=True):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts) + ([BYTES] if bytes_last else [])}}


def normal(*parts, **more):
    return {"normalizer": {"type": "Sequence", "normalizers": list(parts)}, **pre({"type": "WhitespaceSplit"}), **more}


def token(content, **flags):
    return {"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False, **flags}


def added(*tokens, **more):
    return {"added_tokens": [{**each, "id": 776 + i} for i, each in enumerate(tokens)],
            **pre({"type": "WhitespaceSplit"}), **more}


EXPRESSIONS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lo}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}|\s+|.",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+""",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[a-z[0-9]]+", r"[a-z&&[^aeiou]]+", r"[^a-z&&\p{L}]", r"[[a-m]&&[h-z]]+", r"[\w&&\D&&[^_]]+", r"[^[^a-c]x]+",
    r"[\s[:punct:]]+",
    r"[[:alpha:]]+", r"[[:^alpha:]]+", r"[[:digit:]]+", r"[[:upper:]]", r"[[:lower:]]+", r"[[:space:]]+",
    r"[[:word:]]+", r"[[:cntrl:]]",
    r"[[:graph:]]+", r"[[:print:]]+", r"[[:xdigit:]]{2}", r"[[:alnum:]]+", r"[[:blank:]]+", r"[[:ascii:]]+",
    r"[\]\-\\^]", r"[a\-c]", r"[^\n]+",
    r"\p{Lu}", r"\P{L}+", r"\p{^L}+", r"\p{Nd}+", r"\p{No}", r"\p{Greek}+|\p{Cyrillic}+",
    r"\p{Han}|\p{Hiragana}+|\p{Katakana}+", r"\p{Emoji}",
    r"\p{Word}+", r"\P{Word}", r"[\p{Word}]+", r"\p{Mn}", r"\p{Cf}", r"\p{Cn}", r"\p{Sc}|\p{Sm}", r"\p{Zs}+",
    r"\p{Punct}+", r"\p{Alpha}+", r"\p{XPosixPunct}",
    r"\d+", r"\D+", r"\w+", r"\W", r"\s", r"\S+", r"\h+", r"\R", r"\X", r"\O{2}", r"\N+", r".+?", r"..", r"(?m:.+)",
    r"\x41|\x{4e2d}|\u00e9|\t|\e|\101",
    r"a*", r"a*?", r"a??b", r"a*+b", r"(?:ab)++a", r"b{2}", r"[ab]{1,2}?", r"[ab]{,2}", r"x{3,}+", r"(?>a+)b",
    r"(?>ab|a)b", r"\s{2,}(?=\S)",
    r"^", r"$", r"^.", r".$", r"\A.", r".\z", r".\Z", r"\b", r"\B", r"\b\w+\b", r"\Ga", r"(?<=\s)\S", r"(?<!\S)\S+",
    r"(?<=a|bc)b", r"(?=b)", r"(?!b).", r"a\Kb",
    r"(?i)hello|(?-i)world", r"(?i:straße|K|ſ)", r"(?x) h e l l o  # a comment", r"(?i)[^a-y\s]", r"(?i)\p{Lower}",
    r"(?W:\w+)", r"(?D:\d+)", r"(?S:\s+)", r"(?P:[[:alpha:]]+)",
    r"(\w)\1", r"(?<c>\p{L})\k<c>", r"(a|b)\g<1>", r"(?<n>\((?:[^()]|\g<n>)*\))", r"(a)?(?(1)b|c)", r"(?~ab)", r"(?:)",
    r"a||b", r"",
    r"the|then|t", r"(?:'s|'t| ?\w+)(?!\w)", r" ?\S+(?: \S)?",
]


def constructs():
    yield from ((f"expression {one}", pre(split(one))) for one in EXPRESSIONS)
    for behavior in SPLIT_BEHAVIORS:
        for invert in (False, True):
            yield f"split {behavior} {invert}", pre(split(r"\s|b|\d+|a*", behavior, invert))
            yield f"split text {behavior} {invert}", pre(split("a", behavior, invert, "String"))
    for text in ("", ".", "  ", "中", "[b]", "-", "\n"):
        yield f"split text {text!r}", pre(split(text, kind="String"))
    for prefix in (False, True):
        for regex in (False, True):
            yield f"byte level {prefix} {regex}", {"pre_tokenizer": {**BYTES, "add_prefix_space": prefix,
                "use_regex": regex}}
    for scheme in ("always", "first", "never"):
        for cut in (True, False):
            meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}
            yield f"metaspace {scheme} {cut}", pre(meta, bytes_last=False)
            yield f"metaspace {scheme} {cut} split before", pre(split(r"[\p{L}']+", "MergedWithNext"), meta,
                bytes_last=False)
            yield f"metaspace {scheme} {cut} stripped before", {
                **pre(meta), "normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}}
            yield f"metaspace {scheme} {cut} after tokens", {**pre(meta), "added_tokens": [
                token("<s>", id=776), token("the", id=777, normalized=True)], "normalizer": {"type": "NFKD"}}
    yield "metaspace _", pre({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True})
    for part in ({"type": "Digits", "individual_digits": True}, {"type": "Digits", "individual_digits": False},
                 *({"type": "Punctuation", "behavior": each} for each in SPLIT_BEHAVIORS), {"type": "Whitespace"},
                 {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"}, {"type": "CharDelimiterSplit",
                 "delimiter": "a"},
                 {"type": "FixedLength", "length": 3}):
        yield f"pre-tokenizer {json.dumps(part)}", pre(part)
    yield "digits, punctuation, words", pre({"type": "Digits", "individual_digits": True}, {"type": "Punctuation",
        "behavior": "Contiguous"}, split(r" ?\w+"))
    for part in ({"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"},
        {"type": "StripAccents"}, {"type": "Nmt"},
                 {"type": "ByteLevel"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "strip_left": True,
                 "strip_right": True},
                 {"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Replace",
                 "pattern": {"String": " "}, "content": "▁"},
                 {"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": ""}, {"type": "Replace",
                 "pattern": {"Regex": r"\s{2,}"}, "content": " "},
                 {"type": "Replace", "pattern": {"Regex": "(?<=l)"}, "content": "-"},
                 *({"type": "BertNormalizer", "clean_text": a, "handle_chinese_chars": b, "strip_accents": c,
                 "lowercase": d}
                   for a, b, c, d in ((True, True, None, True), (False, True, True, False), (True, False, False, True),
                       (False, False, None, False)))):
        yield f"normalizer {json.dumps(part)}", normal(part)
    yield "NFD, marks, lowercase", normal({"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"})
    yield "strip, prepend, replace", normal({"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Prepend", "prepend": "▁"},
                                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    plain = token("the")
    for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"):
        yield f"added token {flag}", added(token("the", **{flag: True}), token("<|x|>", **{flag: True}))
        yield f"added token {flag}, lowercase", added(token("The", **{flag: True}), token("<|X|>", **{flag: True}),
            normalizer={"type": "Lowercase"})
    everything = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True}
    yield "added token, all flags", added(token("the", **everything), token("<|x|>", **everything), token("中",
        **everything))
    yield "added tokens, the longest", added(plain, token("then"), token("t"), token("th", normalized=True),
        token("hello  "), token(" the"))
    yield "added tokens, both lists", added(token("the", normalized=True), token("the <", special=True), token("HELLO",
        normalized=True), token("hello"), normalizer={"type": "Lowercase"})
    yield "added white space", added(token(" "), token("  ", normalized=True), token("\n", rstrip=True), token("\t",
        lstrip=True), token("    "))
    yield "added white space taken twice", added(token("<|x|>", rstrip=True), token(" "), token("\n"))
    yield "added tokens, prepended", added(token("<|x|>", normalized=True), token("<s>", normalized=True, special=True),
        token("</s>"),
                                           normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend",
                                           "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "},
                                           "content": "▁"}]})
    yield "added tokens, accents", added(token("é", normalized=True), token("e\u0301\u0327"), token("É"),
        normalizer={"type": "NFC"})
    yield "added token of the vocabulary", added(token("a"), token("Ġ"), token("<unk>", special=True))
    letters = {letter: None for letter in "xyzXYZ"}
    for fuse in (False, True):
        for fallback in (False, True):
            unknown = {"unk_token": "<unk>", "fuse_unk": fuse, "byte_fallback": fallback}
            yield f"unknown {fuse} {fallback}", {"model": {**unknown, "end_of_word_suffix": None},
                "pre_tokenizer": {"type": "WhitespaceSplit"}}
            yield f"unknown, few bytes {fuse} {fallback}", {
                "model": {**unknown, "vocab": {**letters, **{f"<0x{b:02X}>": None for b in range(0xE0, 0x100)}}},
                "pre_tokenizer": {"type": "WhitespaceSplit"}}
    yield "nothing unknown, no bytes", {"model": {"byte_fallback": False}, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    yield "ignore_merges", {"model": {"ignore_merges": True, "vocab": {"hello": 790, "world</w>": 791, "Hello": 792,
        "▁": 793}}, **pre({"type": "WhitespaceSplit"})}
    yield "continuing prefix", {"model": {"continuing_subword_prefix": "##", "end_of_word_suffix": None,
        "unk_token": "<unk>", "byte_fallback": False,
                                          "vocab": {"##" + c: 800 + i for i, c in enumerate("abehlnotw")} | {"the": 820,
                                          "he": 821, "##ll": 822, "th": 823},
                                          "merges": [["t", "##h"], ["th", "##e"], ["##l", "##l"]]},
                                          **pre({"type": "WhitespaceSplit"})}
    yield "merges twice", {"model": {"merges": [["a", "b"], ["b", "a"], ["a", "b"]], "vocab": {"ba": 790}},
        **pre({"type": "WhitespaceSplit"})}
    yield "merges as text", {"model": {"merges": ["#version: 0.2", "t h", "th e", "a b"]},
        **pre({"type": "WhitespaceSplit"})}
    special = {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [5, 4],
        "tokens": ["</s>", "</s>"]}}
    one, text = (lambda name: {"SpecialToken": {"id": name, "type_id": 0}}), {"Sequence": {"id": "A", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": [one("<s>"), text, one("</s>")], "pair": pair,
        "special_tokens": special}
    yield "template", {"post_processor": template}
    yield "template in a sequence", {"post_processor": {"type": "Sequence", "processors": [{**BYTES,
        "trim_offsets": False}, {**template, "single": [one("<s>"), text]}]}}
    yield "Roberta", {"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 5], "cls": ["<s>", 3],
        "trim_offsets": True, "add_prefix_space": True}}
    yield "Bert", {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 5], "cls": ["[CLS]", 3]}}


def decoders():
    """(name, decoder, whether what is decoded goes on from other text)"""
    replace, fuse = {"type": "Replace", "pattern": {"String": "Ġ"}, "content": " "}, {"type": "Fuse"}
    fallback, strip = {"type": "ByteFallback"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    sequence = lambda *parts: {"type": "Sequence", "decoders": list(parts)}
    yield "byte level", {**BYTES}, True
    yield "none", None, False
    yield "byte fallback", sequence(replace, fallback, fuse, strip), True
    yield "byte fallback alone", fallback, True
    yield "replace behind byte fallback", sequence(fallback, replace, {"type": "Replace", "pattern": {"Regex": "[a-c]"},
        "content": "<>"}), True
    yield "strip each", sequence(replace, strip), True
    yield "metaspace", {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "always", "split": True}, True
    yield "suffix", {"type": "BPEDecoder", "suffix": "</w>"}, True


def supported():
    """(name, change of tiny()) of files that can be read, one a part."""
    for name, change in constructs():
        if name.split()[0] in ("normalizer", "pre-tokenizer", "Roberta", "Bert", "template", "digits,"):
            yield name.split("{")[0].strip().replace(" ",
                "_") + "_" + "".join(c for c in name.partition("{")[2] if c.isalnum())[:40], {
                key: part for key, part in change.items() if key != "model"}


def refused():
    """(JSON path that must be named, change of tiny()) of files that cannot be read exactly."""
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    yield "model.type", {"model": {"type": "WordPiece"}}
    yield "model.type", {"model": {"type": "Unigram"}}
    yield "model.type", {"model": {"type": "WordLevel"}}
    yield "model.dropout", {"model": {"dropout": 0.1}}
    yield "model.merges[0]", {"model": {"merges": [["a", "zz"]]}}
    yield "normalizer.type", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    yield "normalizer.normalizers[1].type", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
        {"type": "Unknown"}]}}
    yield "normalizer.pattern", {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}
    yield "pre_tokenizer.type", {"pre_tokenizer": {"type": "UnicodeScripts"}}
    yield "pre_tokenizer.pattern", {"pre_tokenizer": split("[a")}
    yield "pre_tokenizer.pattern", {"pre_tokenizer": split(r"\p{Nonsense}")}
    yield "pre_tokenizer.behavior", {"pre_tokenizer": split("a", "isolated")}
    yield "pre_tokenizer.replacement", {"pre_tokenizer": {**meta, "replacement": "▁▁"}}
    yield "pre_tokenizer.prepend_scheme", {"pre_tokenizer": {**meta, "prepend_scheme": "sometimes"}}
    yield "pre_tokenizer.add_prefix_space", {"pre_tokenizer": {**meta, "add_prefix_space": False}}
    yield "post_processor.type", {"post_processor": {"type": "Unknown"}}
    broken = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    yield "post_processor.single", {"post_processor": {**broken, "single": [{"SpecialToken": {"id": "<s>"}}]}}
    yield "post_processor.single", {"post_processor": {**broken, "single": [3]}}
    yield "added_tokens", {"added_tokens": 3}
    cls = {"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]}
    yield "post_processor.processors[1].type", {"post_processor": {"type": "Sequence", "processors": [cls, cls]}}
    yield "decoder.type", {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    yield "decoder.type", {"decoder": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|",
        "cleanup": True}}
    yield "added_tokens", {"normalizer": {"type": "Lowercase"}, "added_tokens": [token("AB", id=9, normalized=True),
        token("Ab", id=10, normalized=True)]}
    yield "added_tokens", {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "added_tokens": [token(" ", id=9, normalized=True)]}


def tiny():
    return {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}


def constructs_of_properties():
    """What asks for properties of single characters."""
    wanted = ["Digits", "Punctuation", "Whitespace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents",
        "BertNormalizer"]
    seen = set()
    for name, change in constructs():
        kind = next((each for each in wanted if f'"{each}"' in name), None)
        if name.startswith(("expression 's", "expression [[:alpha:]]+",
            "expression [[:punct:]]")) or (kind and kind not in seen):
            seen.add(kind)
            yield name, change


# --- random ones ----------------------------------------------------------------------------------------------------

ATOMS = EXPRESSIONS[30:80] + ["a", "b", "é", "中", " ", r"\n", r"\s", r"\S", r"\w", r"\p{L}", r"\p{N}", r"\p{M}",
    "[a-z]", "[^\\s]", ".", "'", "-", "😀"]
QUANTIFIERS = ["", "", "", "", "+", "*", "?", "+?", "*?", "++", "?+", "{2}", "{1,3}", "{,2}"]
GROUPS = ["(", "(?:", "(?i:", "(?>", "(?=", "(?!", "(?-i:", "(?m:"]


def random_class(rng, depth=0):
    items = [rng.choice([r"\p{L}", r"\P{Lu}", r"\p{Han}", "[:alpha:]", "[:^punct:]", "a-z", "0-9", "α-ω", "一-龥", r"\s",
        r"\d", r"\W", "_", "é", "中"])
             for _ in range(rng.randint(1, 4))]
    if depth < 2 and rng.random() < 0.3:
        items.append(random_class(rng, depth + 1))
    more = "&&" + (random_class(rng, depth + 1) if depth < 2 else r"\w") if rng.random() < 0.3 else ""
    return "[" + rng.choice(["", "", "^"]) + "".join(items) + more + "]"


def random_expression(rng, depth=0):
    def one():
        kind = rng.random()
        if kind < 0.4:
            return random_class(rng) + rng.choice(QUANTIFIERS)
        if kind < 0.8 or depth > 1:
            return "(?:" + rng.choice(ATOMS) + ")" + rng.choice(QUANTIFIERS)
        group = rng.choice(GROUPS)
        return group + random_expression(rng, depth + 1) + ")" + ("" if group in ("(?=",
            "(?!") else rng.choice(QUANTIFIERS))
    return "|".join("".join(one() for _ in range(rng.randint(1, 3))) for _ in range(rng.choice([1, 1, 2, 3])))


def random_text(rng):
    parts = []
    for _ in range(rng.choice([0, 1, 3, 8, 20])):
        text = rng.choice(TEXTS)
        begin = rng.randrange(len(text) + 1)
        code = rng.choice([rng.randrange(0x110000), rng.randrange(0x20, 0x530), rng.randrange(0x2000, 0x3100)])
        parts += [text[begin:begin + rng.randint(1, 6)] * rng.choice([1, 1, 1, 3]),
            chr(code if not 0xD800 <= code < 0xE000 else 0x20)]
    return "".join(parts)


def random_change(rng):
    """A normalizer, pre-tokenizers, added tokens and options of the model, of which any may be missing."""
    parts = [change for name, change in constructs() if name.startswith(("normalizer", "pre-tokenizer", "byte level",
        "metaspace"))]
    normalizers = [part for change in parts for part in change.get("normalizer", {}).get("normalizers", [])]
    cutters = [part for change in parts for part in change["pre_tokenizer"].get("pretokenizers",
        [change["pre_tokenizer"]])]
    chosen = [split(rng.choice(EXPRESSIONS) if rng.random() < 0.2 else random_expression(rng),
        rng.choice(SPLIT_BEHAVIORS), rng.random() < 0.3)
              if rng.random() < 0.5 else rng.choice(cutters) for _ in range(rng.randint(0, 3))]
    contents = rng.sample(["<s>", "<|x|>", "the", "The", "hello", "a", "ab", " ", "  ", "\n", "é", "e\u0301", "中", "_",
        "'s", "▁a"], rng.choice([0, 1, 3]))
    flag = lambda: rng.random() < 0.35
    return {"normalizer": {"type": "Sequence", "normalizers": [rng.choice(normalizers) for _ in range(rng.choice([0, 0,
        1, 2, 3]))]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": chosen + ([BYTES] if flag() else [])},
            "added_tokens": [token(content, id=776 + i, single_word=flag(), lstrip=flag(), rstrip=flag(),
            normalized=flag(), special=flag())
                             for i, content in enumerate(contents)],
            "model": {"unk_token": rng.choice([None, "<unk>"]), "fuse_unk": flag(), "byte_fallback": flag(),
            "ignore_merges": flag()}}
