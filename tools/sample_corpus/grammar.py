"""Text from rules. A template is a string with slots:

    {animal}        one of the rule's templates, expanded in turn
    {hero=person}   the same, and remembered: {hero} gives it again in this document
    {^animal}       with its first letter in upper case

A rule is a list of templates or a function of the Writer. Choices favour a list's beginning, as words of real text
are far from equally frequent. All randomness is the Writer's: the same seed writes the same text.
"""

import functools
import random
import re

SLOT = re.compile(r"\{(\^?)(?:(\w+)=)?(\w+)\}")
SKEW = 1.4  # the exponent by which choices favour the beginning; 1 would be even


@functools.lru_cache(maxsize=None)
def parsed(template):
    """-> [text, upper, remember, rule, text, ...]"""
    return SLOT.split(template)


class Writer:
    def __init__(self, seed, rules):
        self.random = random.Random(seed).random  # the one method that Python promises never to change
        self.rules = rules
        self.remembered = {}

    def forget(self):
        self.remembered.clear()

    def number(self, low, high):
        """An integer from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability):
        return self.random() < probability

    def pick(self, choices):
        return choices[int(len(choices) * self.random() ** SKEW)]

    def even(self, choices):
        return choices[int(len(choices) * self.random())]

    def several(self, choices, count):
        """`count` different ones."""
        left = list(choices)
        return [left.pop(int(len(left) * self.random())) for _ in range(min(count, len(left)))]

    def rule(self, name):
        choices = self.rules[name]
        return choices(self) if callable(choices) else self.expand(self.pick(choices))

    def expand(self, template):
        parts = parsed(template)
        out = [parts[0]]
        for i in range(1, len(parts), 4):
            upper, remember, name, text = parts[i : i + 4]
            if remember:
                value = self.remembered[remember] = self.rule(name)
            else:
                value = self.remembered.get(name) or self.rule(name)
            out.append(value[:1].upper() + value[1:] if upper else value)
            out.append(text)
        return "".join(out)

    def lines(self, templates):
        return "\n".join(self.expand(template) for template in templates)

    def paragraph(self, rule, low, high):
        return " ".join(self.expand("{" + rule + "}") for _ in range(self.number(low, high)))


def a_or_an(text):
    """Mends "a" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!ne\b|nit|ni[cfqv]|ser|s[eu]|uro))", r"\1n ", text)


def join_list(items):
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
