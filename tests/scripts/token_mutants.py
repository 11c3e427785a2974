"""Mutants of the script of API keys' rates.

Each is (what is wrong, text that occurs once in the script, its replacement).
"""

TAKE_TOKENS = (
    ("a new bucket is empty", "local tokens = burst", "local tokens = 0"),
    ("a bucket is never refilled", "math.max(0, now - at) * rate / 1000000", "0"),
    (
        "a refill has no limit",
        "math.min(burst, before + math.max(0, now - at) * rate / 1000000)",
        "before + math.max(0, now - at) * rate / 1000000",
    ),
    ("a refill starts from nothing", "before + math.max", "math.max"),
    ("a clock that is set back takes tokens", "math.max(0, now - at)", "(now - at)"),
    ("a refill counts milliseconds", "rate / 1000000)", "rate / 1000)"),
    ("a fraction of a token is taken", "math.min(wanted, math.floor(tokens))", "math.min(wanted, math.ceil(tokens))"),
    ("more is taken than there is", "math.min(wanted, math.floor(tokens))", "wanted"),
    ("all is taken", "math.min(wanted, math.floor(tokens))", "math.floor(tokens)"),
    ("what is taken stays", "local left = tokens - taken", "local left = tokens"),
    ("a bucket expires before it is full", "(burst - left) / rate * 1000) + 1000)", "(burst - left) * 10) + 1000)"),
    ("a bucket does not expire", ", 'PX', ttl)", ")"),
    ("the time is not stored", "left, now), 'PX'", "left, 0), 'PX'"),
    (
        "tokens left are a whole number",
        "return {taken, string.format('%.17g', left)}",
        "return {taken, string.format('%.0f', left)}",
    ),
)
