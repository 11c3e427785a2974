"""Words on the command line that describe metadata, features and parameters.

Pure. Owns their syntax, and the options that take several words. Invariant: what a word means
does not depend on its value: text is text, and JSON is marked as such where both are possible.
"""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand

from keepfit.errors import InvalidError, KeepfitError, MalformedError
from keepfit.identity import check_metadata, parse_json

# Options that take several words, each with the character that such a word holds; "" for any word.
SEVERAL = {"--metadata": "=", "--params": "=", "--features": ":", "--classes": ""}

# Characters of an option that may have its value in the same word.
SHORT = 2


class SeveralWords(TyperCommand):
    """A command whose options in :data:`SEVERAL` take all words that follow them and have their form."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its words, which is the form that the parser knows."""
        repeated: list[str] = []
        # Other options, also those that have their value in the same word: -ofile.
        ends = ("--", *(name for parameter in self.params for name in parameter.opts if len(name) == SHORT))
        option, is_first = "", False
        for number, word in enumerate(args):
            if is_first and word.startswith("--"):
                raise typer.BadParameter("a word must follow.", ctx=ctx, param_hint=option)
            if word == "--":
                repeated += args[number:]
                break
            if word in SEVERAL:
                option, is_first = word, True
            elif option and (is_first or (SEVERAL[option] in word and not word.startswith(ends))):
                repeated += [option, word]
                is_first = False
            else:
                option = ""
                repeated.append(word)
        if is_first:
            raise typer.BadParameter("a word must follow.", ctx=ctx, param_hint=option)
        return super().parse_args(ctx, repeated)


def parse_metadata(words: Iterable[str] | None) -> dict[str, Any]:
    """Return the metadata that the words of `--metadata` describe.

    >>> parse_metadata(["type=shoes", "size:=40"]), parse_metadata(['{"type": "shoes"}'])
    ({'type': 'shoes', 'size': 40}, {'type': 'shoes'})

    Raises
    ------
    MalformedError, InvalidError
        If a word has another form, a key has two values, or the metadata are not valid.
    """
    given = list(words or ())
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return check_metadata(_parse(given[0], "--metadata"))
    found: dict[str, Any] = {}
    for key, value in parse_pairs(given, "--metadata", "type=shoes"):
        name, is_json = (key[:-1], True) if key.endswith(":") else (key, False)
        if name in found:
            raise MalformedError(f"--metadata has two values for {name!r}.")
        found[name] = _parse(value, f"--metadata {name}:=") if is_json else value
    return check_metadata(found)


def parse_pairs(words: Iterable[str] | None, option: str, example: str) -> list[tuple[str, str]]:
    """Return words of the form KEY=VALUE as pairs. Raise MalformedError, with `example`, for any other word."""
    pairs = []
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key.strip(":") or not equals:
            raise MalformedError(f"{option} {word!r} is not KEY=VALUE, such as {example}.")
        pairs.append((key, value))
    return pairs


def parse_features(words: Iterable[str] | None) -> dict[str, str] | None:
    """Return the kind of each column that words of the form NAME:KIND describe; None without words.

    >>> parse_features(["make:category", "year:number"])
    {'make': 'category', 'year': 'number'}

    Raises
    ------
    MalformedError
        If a word has another form, or names a column again.
    """
    features: dict[str, str] = {}
    for word in words or ():
        name, colon, kind = word.rpartition(":")
        if not name or not colon or not kind:
            raise MalformedError(f"--features {word!r} is not NAME:KIND, such as make:category.")
        if name in features:
            raise MalformedError(f"--features names the column {name!r} twice.")
        features[name] = kind
    return features or None


def json_or_text(word: str) -> Any:
    """Return the JSON value that a word is, otherwise the word itself.

    >>> json_or_text("0.5"), json_or_text("l1"), json_or_text("true"), json_or_text('"5"')
    (0.5, 'l1', True, '5')
    """
    try:
        return parse_json(word.encode("utf-8", "surrogateescape"))
    except KeepfitError:
        return word


def _parse(text: str, source: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogateescape"))
    except (MalformedError, InvalidError) as error:
        raise MalformedError(f"{source}: {str(error).replace('The body', 'The value')}") from None
