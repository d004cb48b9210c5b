"""Small Python and C files. Their identifiers are consistent: what is declared is used, under the same name."""

from .grammar import join_list

RULES = {}  # everything here is built, nothing expanded

# A thing, and the fields that it has with their types: "i" integer, "f" float, "s" string.
THINGS = (
    ("order", (("price", "f"), ("quantity", "i"), ("customer", "s"), ("status", "s"))),
    ("packet", (("length", "i"), ("source", "s"), ("checksum", "i"), ("delay", "f"))),
    ("node", (("weight", "f"), ("depth", "i"), ("label", "s"), ("degree", "i"))),
    ("user", (("name", "s"), ("age", "i"), ("email", "s"), ("score", "f"))),
    ("sensor", (("value", "f"), ("unit", "s"), ("channel", "i"), ("offset", "f"))),
    ("task", (("priority", "i"), ("name", "s"), ("duration", "f"), ("retries", "i"))),
    ("token", (("kind", "s"), ("line", "i"), ("column", "i"), ("text", "s"))),
    ("point", (("x", "f"), ("y", "f"), ("mass", "f"), ("cluster", "i"))),
    ("record", (("key", "s"), ("size", "i"), ("version", "i"), ("ratio", "f"))),
    ("page", (("index", "i"), ("title", "s"), ("words", "i"), ("rank", "f"))),
    ("account", (("balance", "f"), ("owner", "s"), ("number", "i"), ("rate", "f"))),
    ("pixel", (("red", "i"), ("green", "i"), ("blue", "i"), ("alpha", "f"))),
)
PYTHON_TYPES = {"i": "int", "f": "float", "s": "str"}
C_TYPES = {"i": "int", "f": "double", "s": "const char *"}
C_FORMATS = {"i": "%d", "f": "%.2f", "s": "%s"}
COMPARE = ("<", ">", "<=", ">=", "==", "!=")
ARITHMETIC = ("+", "-", "*")
VARIABLES = "n i count total left right width index start end size limit step result value offset".split()
VERBS = "compute update merge scan collect reduce check find build normalize split apply".split()


def fields(thing, kinds):
    return [name for name, kind in thing[1] if kind in kinds]


def numeric(w, thing):
    return w.even(fields(thing, "if"))


def literal(w, kind):
    if kind == "i":
        return str(w.pick((0, 1, 2, 10, 3, 4, 8, 16, 100, 5, 32, 64, 7, 255, 1000)))
    if kind == "f":
        return f"{w.number(0, 20)}.{w.pick((0, 5, 25, 75, 1))}"
    return '"' + w.pick(("open", "closed", "ready", "main", "north", "default", "error", "new", "left", "unknown")) + '"'


def unique(parts):
    """Without a second definition of a name."""
    defined = {}
    for part in parts:
        defined.setdefault(part[0].split("(")[0].split(" ")[-1], part)
    return list(defined.values())


def expression(w, names, depth=0):
    """Arithmetic over the given names; valid in both languages."""
    if depth >= 2 or w.chance(0.35):
        return w.pick(names) if w.chance(0.7) else literal(w, "i")
    text = f"{expression(w, names, depth + 1)} {w.pick(ARITHMETIC)} {expression(w, names, depth + 1)}"
    return f"({text})" if depth else text


def statements(w, names, indent, language, depth=0):
    """A block of code that changes `names[0]` and returns nothing; all names are integers."""
    pad, end = "    " * indent, ";" if language == "c" else ""
    lines = []
    for _ in range(w.number(1, 3)):
        kind = w.number(0, 5) if depth < 2 else 0
        target = w.even(names)
        if kind <= 2:
            operator = w.pick(("+=", "=", "-=", "*="))
            lines.append(f"{pad}{target} {operator} {expression(w, names)}{end}")
        elif kind == 3:
            test = f"{w.pick(names)} {w.pick(COMPARE)} {expression(w, names, 1)}"
            lines.append(f"{pad}if ({test}) {{" if language == "c" else f"{pad}if {test}:")
            lines += statements(w, names, indent + 1, language, depth + 1)
            if w.chance(0.4):
                lines.append(f"{pad}}} else {{" if language == "c" else f"{pad}else:")
                lines += statements(w, names, indent + 1, language, depth + 1)
            if language == "c":
                lines.append(f"{pad}}}")
        elif kind == 4:
            free = [name for name in ("i", "j", "k") if name not in names]
            if not free:
                continue
            bound = w.pick(names)
            lines.append(f"{pad}for (int {free[0]} = 0; {free[0]} < {bound}; {free[0]}++) {{" if language == "c"
                         else f"{pad}for {free[0]} in range({bound}):")  # fmt: skip
            lines += statements(w, [*names, free[0]], indent + 1, language, depth + 1)
            if language == "c":
                lines.append(f"{pad}}}")
        else:
            lines.append(f"{pad}while ({target} > {literal(w, 'i')}) {{" if language == "c"
                         else f"{pad}while {target} > {literal(w, 'i')}:")  # fmt: skip
            lines.append(f"{pad}    {target} {w.even(('/= 2', '-= 1')) if language == 'c' else w.even(('//= 2', '-= 1'))}{end}")
            if language == "c":
                lines.append(f"{pad}}}")
    return lines or [f"{pad}{names[0]} += 1{end}"]


# --- Python -----------------------------------------------------------------------------------------------------------


def python_class(w, thing):
    name, members = thing[0].capitalize(), thing[1]
    lines = [f"class {name}:", f'    """A {thing[0]} with its {join_list(n for n, _ in members)}."""', "",
             "    def __init__(self, " + ", ".join(f"{n}: {PYTHON_TYPES[k]}" for n, k in members) + "):"]  # fmt: skip
    lines += [f"        self.{n} = {n}" for n, _ in members]
    field = numeric(w, thing)
    lines += ["", "    def __repr__(self):",
              f"        return f\"{name}(" + ", ".join(f"{n}={{self.{n}}}" for n, _ in members[:2]) + ")\""]  # fmt: skip
    if w.chance(0.6):
        lines += ["", f"    def is_{w.pick(('large', 'valid', 'empty', 'active'))}(self):",
                  f"        return self.{field} {w.pick(COMPARE)} {literal(w, 'i')}"]  # fmt: skip
    if w.chance(0.5):
        lines += ["", f"    def add_{field}(self, amount):", "        if amount < 0:",
                  f"            raise ValueError(f\"{field} cannot fall by {{amount}}\")",
                  f"        self.{field} += amount", "        return self"]  # fmt: skip
    return lines


def python_total(w, thing):
    noun, field, other = thing[0], numeric(w, thing), w.even([n for n, _ in thing[1]])
    return [f"def total_{field}({noun}s, limit={literal(w, 'i')}):",
            f'    """Sums the {field} of all {noun}s below the limit."""', "    total = 0", f"    for {noun} in {noun}s:",
            f"        if {noun}.{field} {w.pick(('<', '<='))} limit:", f"            total += {noun}.{field}",
            *([f"            print({noun}.{other})"] if w.chance(0.3) else []), "    return total"]  # fmt: skip


def python_group(w, thing):
    noun, field = thing[0], w.even([n for n, _ in thing[1]])
    return [f"def group_by_{field}({noun}s):", "    groups = {}", f"    for {noun} in {noun}s:",
            f"        groups.setdefault({noun}.{field}, []).append({noun})", "    return groups"]  # fmt: skip


def python_select(w, thing):
    noun, field, kind = thing[0], *w.even(thing[1])
    compare = w.pick(COMPARE) if kind != "s" else w.pick(("==", "!="))
    return [f"def select_{noun}s({noun}s):",
            f"    return [{noun} for {noun} in {noun}s if {noun}.{field} {compare} {literal(w, kind)}]"]  # fmt: skip


def python_best(w, thing):
    noun, field = thing[0], numeric(w, thing)
    which = w.even(("min", "max"))
    return [f"def {which}_{field}({noun}s):", f"    if not {noun}s:", "        return None",
            f"    return {which}({noun}s, key=lambda {noun}: {noun}.{field})"]  # fmt: skip


def python_parse(w, thing):
    noun, members = thing
    lines = [f"def parse_{noun}(line):", f"    parts = line.strip().split(\"{w.pick((',', ';', ':', '|'))}\")",
             f"    if len(parts) != {len(members)}:", f"        raise ValueError(f\"not a {noun}: {{line!r}}\")"]  # fmt: skip
    arguments = ", ".join(f"parts[{i}]" if k == "s" else f"{PYTHON_TYPES[k]}(parts[{i}])" for i, (_, k) in enumerate(members))
    return [*lines, f"    return {noun.capitalize()}({arguments})"]


def python_compute(w, _):
    names = w.several(VARIABLES[:1] + VARIABLES[2:], w.number(2, 3))
    return [f"def {w.pick(VERBS)}_{names[-1]}({', '.join(names)}):", *statements(w, names, 1, "python"),
            f"    return {names[0]}"]  # fmt: skip


def python_test(w, thing):
    noun, field = thing[0], numeric(w, thing)
    values = [w.number(1, 9) for _ in range(w.number(2, 4))]
    return [f"def test_total_{field}():", f"    {noun}s = [make_{noun}({field}=value) for value in {values}]",
            f"    assert sum({noun}.{field} for {noun} in {noun}s) == {sum(values)}",
            f"    assert max({noun}.{field} for {noun} in {noun}s) == {max(values)}"]  # fmt: skip


def python_file(w):
    thing = w.pick(THINGS)
    parts = [python_class(w, thing)] if w.chance(0.7) else []
    makers = (python_total, python_select, python_compute, python_group, python_best, python_parse, python_test)
    parts += [w.pick(makers)(w, thing) for _ in range(w.number(2, 5))]
    parts = unique(parts)
    imports = w.several(("import json", "import math", "import os", "import sys", "import logging"), w.number(0, 3))
    lines = [f'"""Functions for {thing[0]}s."""', ""] + (sorted(imports) + [""] if imports else [])
    for part in parts:
        lines += ["", *part, ""]
    if w.chance(0.3):
        lines += ["", 'if __name__ == "__main__":', "    with open(sys.argv[1]) as file:",
                  f"        {thing[0]}s = [parse_{thing[0]}(line) for line in file]", f"    print(len({thing[0]}s))", ""]  # fmt: skip
    return f"{thing[0]}s.py", "\n".join(lines)


# --- C ----------------------------------------------------------------------------------------------------------------


def declared(kind, name):
    return C_TYPES[kind] + ("" if kind == "s" else " ") + name


def c_struct(_, thing):
    return [f"struct {thing[0]} {{", *(f"    {declared(k, n)};" for n, k in thing[1]), "};"]


def c_init(w, thing):
    noun = thing[0]
    return [f"void {noun}_init(struct {noun} *{noun[0]})", "{",
            *(f"    {noun[0]}->{n} = {literal(w, k)};" for n, k in thing[1]), "}"]  # fmt: skip


def c_sum(w, thing):
    noun, field = thing[0], numeric(w, thing)
    kind = dict(thing[1])[field]
    return [f"{declared(kind, f'{noun}_sum_{field}')}(const struct {noun} *items, size_t count)", "{",
            f"    {declared(kind, 'sum')} = 0;", "    for (size_t i = 0; i < count; i++) {",
            *([f"        if (items[i].{field} {w.pick(COMPARE)} {literal(w, kind)})", "            continue;"]
              if w.chance(0.5) else []),
            f"        sum += items[i].{field};", "    }", "    return sum;", "}"]  # fmt: skip


def c_print(w, thing):
    noun = thing[0]
    shown = w.several(thing[1], w.number(2, 4))
    formats = " ".join(f"{n}={C_FORMATS[k]}" for n, k in shown)
    return [f"void {noun}_print(FILE *out, const struct {noun} *{noun[0]})", "{",
            f"    fprintf(out, \"{formats}\\n\", " + ", ".join(f"{noun[0]}->{n}" for n, _ in shown) + ");", "}"]  # fmt: skip


def c_find(w, thing):
    noun, field, kind = thing[0], *w.even(thing[1])
    test = f"strcmp(items[i].{field}, {field}) == 0" if kind == "s" else f"items[i].{field} == {field}"
    return [f"struct {noun} *{noun}_find(struct {noun} *items, size_t count, {declared(kind, field)})", "{",
            "    for (size_t i = 0; i < count; i++) {", f"        if ({test})", "            return &items[i];", "    }",
            "    return NULL;", "}"]  # fmt: skip


def c_alloc(_, thing):
    noun = thing[0]
    return [f"struct {noun} *{noun}_new(void)", "{",
            f"    struct {noun} *{noun[0]} = malloc(sizeof(*{noun[0]}));", f"    if ({noun[0]} == NULL)",
            "        return NULL;", f"    {noun}_init({noun[0]});", f"    return {noun[0]};", "}", "",
            f"void {noun}_free(struct {noun} *{noun[0]})", "{", f"    free({noun[0]});", "}"]  # fmt: skip


def c_compute(w, _):
    names = w.several([name for name in VARIABLES if name != "i"], w.number(2, 3))
    return [f"static int {w.pick(VERBS)}_{names[-1]}({', '.join('int ' + name for name in names)})", "{",
            *statements(w, names, 1, "c"), f"    return {names[0]};", "}"]  # fmt: skip


def c_file(w):
    thing = w.pick(THINGS)
    lines = [f"/* {thing[0]}.c: functions for {thing[0]}s */", "#include <stdio.h>", "#include <stdlib.h>",
             "#include <string.h>", ""]  # fmt: skip
    if w.chance(0.5):
        lines += [f"#define MAX_{thing[0].upper()}S {w.pick((16, 64, 100, 256, 1024, 4096))}", ""]
    parts = [c_struct(w, thing), c_init(w, thing)]
    parts += [w.pick((c_sum, c_compute, c_print, c_find, c_alloc))(w, thing) for _ in range(w.number(2, 5))]
    for part in unique(parts):
        lines += [*part, ""]
    return f"{thing[0]}.c", "\n".join(lines)


def write_document(w):
    return (python_file if w.chance(0.6) else c_file)(w)
