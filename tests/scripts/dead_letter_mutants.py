"""Mutants of the scripts that retry, discard and list dead letters.

Each is (what is wrong, text that occurs once in the script, its replacement).
"""

RETRY = (
    (
        "a missing model gets an inbox",
        "if not state[1] then\n  return {'missing'}\nend",
        "if not state[1] then state = {ARGV[1], '0', '0', '0', '', '0'} end",
    ),
    ("a model that was created again is not detected", "if state[1] ~= ARGV[1] then", "if false then"),
    ("a repeat is not recognized", "if seen then", "if false then"),
    ("the answer for a repeat does not expire", ", 'PX', ARGV[2])", ")"),
    ("the answer of a call that moved nothing is stored", "if count > 0 then", "if true then"),
    ("a dead letter named twice is moved twice", " or named[item[1]]", ""),
    ("the key of large rows is not compared", " or (entry[10] ~= '' and entry[10] ~= KEYS[i])", ""),
    (
        "rows of another generation are accepted",
        "elseif tonumber(entry[2]) < tonumber(state[8] or ARGV[1]) then",
        "elseif false then",
    ),
    ("dead letters from before a rewind are refused", "tonumber(state[8] or ARGV[1])", "tonumber(ARGV[1])"),
    ("large rows may be missing", "redis.call('STRLEN', KEYS[i]) ~= tonumber(entry[12])", "false"),
    (
        "large rows may be incomplete",
        "redis.call('STRLEN', KEYS[i]) ~= tonumber(entry[12])",
        "redis.call('EXISTS', KEYS[i]) == 0",
    ),
    (
        "one request above the limit is accepted",
        "waiting + count >= tonumber(ARGV[3])",
        "waiting + count > tonumber(ARGV[3])",
    ),
    (
        "the requests of the call itself are not counted",
        "waiting + count >= tonumber(ARGV[3])",
        "waiting >= tonumber(ARGV[3])",
    ),
    ("bytes have no limit", "bytes + tonumber(entry[12]) > tonumber(ARGV[4])", "false"),
    (
        "the limit of bytes is one too low",
        "bytes + tonumber(entry[12]) > tonumber(ARGV[4])",
        "bytes + tonumber(entry[12]) >= tonumber(ARGV[4])",
    ),
    ("a single large request is refused", "(waiting + count > 0 and bytes", "(bytes"),
    ("pending bytes are not counted", "    bytes = bytes + tonumber(entry[12])\n", ""),
    ("the request digest does not cover the previous one", "chain .. ':' .. old", "old"),
    ("the request digest does not cover the id", "':' .. old .. ':'", "':'"),
    ("the request digest does not cover the rows", " .. ':' .. entry[8])", ")"),
    ("the key of large rows is missing", "'big', entry[10], 'size', entry[12])", "'size', entry[12])"),
    ("a retried request stays a dead letter", "    redis.call('XDEL', KEYS[3], old)\n", ""),
    ("`accepted` is not updated", "'accepted', string.format('%.0f', accepted + count), 'chain'", "'chain'"),
    ("the request digest is not stored", "'chain', chain,\n", "\n"),
    ("removed dead letters are not counted", "  redis.call('HINCRBY', KEYS[1], 'removed', count)\n", ""),
    ("the number of pending requests is wrong", "words, waiting + count, pace}", "words, waiting, pace}"),
)

DISCARD = (
    ("a missing model has dead letters", "if not version then\n  return {}\nend", "version = version or 0"),
    (
        "all dead letters are deleted",
        "redis.call('XDEL', KEYS[2], item[1])",
        "redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)",
    ),
    ("large rows stay", "      redis.call('UNLINK', KEYS[i])\n", ""),
    ("the key of large rows is not compared", " and item[2][10] == KEYS[i]", ""),
    (
        "large rows of a retried request are deleted",
        "  if item then\n",
        "  if not item and KEYS[i] ~= KEYS[2] then redis.call('UNLINK', KEYS[i]) end\n  if item then\n",
    ),
    ("removed dead letters are not counted", "  redis.call('HINCRBY', KEYS[1], 'removed', count)\n", ""),
    ("a call that deleted nothing is counted", "if count > 0 then", "if true then"),
    ("only the first dead letter is deleted", "for i = 3, #KEYS do", "for i = 3, math.min(3, #KEYS) do"),
)

PEEK = (
    ("only one page is read", "if #read < 16 then", "if true then"),
    ("pages overlap", "    from = '(' .. item[1]\n", "    from = item[1]\n"),
    ("more dead letters than requested are read", "math.min(16, most - #found)", "16"),
    ("rows above the limit are returned", "#entry[8] <= tonumber(ARGV[4]) and entry[8] or ''", "entry[8]"),
    ("bytes of rows have no limit", "bytes + #rows > tonumber(ARGV[5])", "false"),
    ("the limit of bytes is one too low", "bytes + #rows > tonumber(ARGV[5])", "bytes + #rows >= tonumber(ARGV[5])"),
    ("bytes of rows are not counted", "    bytes = bytes + #rows\n", ""),
    ("rows above the limit of a page are never read", "if #found > 0 and bytes", "if bytes"),
    ("entries beyond the page are skipped", "      return found\n", "      from = '(' .. item[1]\n      break\n"),
    ("the key of large rows is missing", "entry[14], entry[10], entry[12]", "entry[14], '', entry[12]"),
    ("the end of the range is ignored", "from, ARGV[2], 'COUNT'", "from, '+', 'COUNT'"),
)
