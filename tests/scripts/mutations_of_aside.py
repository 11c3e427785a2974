"""Mistakes to put into the scripts that retry, discard and look at what was put aside.

Each is (what is wrong, text that stands in the script once, text in its place).
"""

RETRY = (
    (
        "a missing model has an inbox",
        "if not state[1] then\n  return {'missing'}\nend",
        "if not state[1] then state = {ARGV[1], '0', '0', '0', '', '0'} end",
    ),
    ("a model made again is taken for the one before", "if state[1] ~= ARGV[1] then", "if false then"),
    ("a repeat is not known", "if seen then", "if false then"),
    ("a repeat is known for ever", ", 'PX', ARGV[2])", ")"),
    ("a call that moved nothing is remembered", "if count > 0 then", "if true then"),
    ("one named twice is moved twice", " or named[item[1]]", ""),
    ("any key may be that of large rows", " or (entry[10] ~= '' and entry[10] ~= KEYS[i])", ""),
    (
        "another generation's rows are taken",
        "elseif tonumber(entry[2]) < tonumber(state[8] or ARGV[1]) then",
        "elseif false then",
    ),
    ("rows from before a return are another's", "tonumber(state[8] or ARGV[1])", "tonumber(ARGV[1])"),
    ("large rows may be lost", "redis.call('STRLEN', KEYS[i]) ~= tonumber(entry[12])", "false"),
    (
        "large rows may be lost in part",
        "redis.call('STRLEN', KEYS[i]) ~= tonumber(entry[12])",
        "redis.call('EXISTS', KEYS[i]) == 0",
    ),
    ("one more request than may wait", "waiting + count >= tonumber(ARGV[3])", "waiting + count > tonumber(ARGV[3])"),
    ("a call's own requests are not counted", "waiting + count >= tonumber(ARGV[3])", "waiting >= tonumber(ARGV[3])"),
    ("bytes are not bounded", "bytes + tonumber(entry[12]) > tonumber(ARGV[4])", "false"),
    (
        "a byte too few may wait",
        "bytes + tonumber(entry[12]) > tonumber(ARGV[4])",
        "bytes + tonumber(entry[12]) >= tonumber(ARGV[4])",
    ),
    ("a large request is refused when alone", "(waiting + count > 0 and bytes", "(bytes"),
    ("bytes are not added", "    bytes = bytes + tonumber(entry[12])\n", ""),
    ("links do not cover the one before", "chain .. ':' .. old", "old"),
    ("links do not cover the id of before", "':' .. old .. ':'", "':'"),
    ("links do not cover the rows", " .. ':' .. entry[8])", ")"),
    ("large rows are not named", "'big', entry[10], 'size', entry[12])", "'size', entry[12])"),
    ("what waits is put aside still", "    redis.call('XDEL', KEYS[3], old)\n", ""),
    ("accepted is not counted", "'accepted', string.format('%.0f', accepted + count), 'chain'", "'chain'"),
    ("the chain is not kept", "'chain', chain,\n", "\n"),
    ("nobody knows that any left", "  redis.call('HINCRBY', KEYS[1], 'removed', count)\n", ""),
    ("it is not said how many wait", "told, waiting + count, pace}", "told, waiting, pace}"),
)

DISCARD = (
    ("a missing model has something aside", "if not version then\n  return {}\nend", "version = version or 0"),
    ("another one is forgotten", "redis.call('XDEL', KEYS[2], item[1])", "redis.call('XTRIM', KEYS[2], 'MAXLEN', 0)"),
    ("large rows stay", "      redis.call('UNLINK', KEYS[i])\n", ""),
    ("any key may be that of large rows", " and item[2][10] == KEYS[i]", ""),
    (
        "rows of one that waits again go",
        "  if item then\n",
        "  if not item and KEYS[i] ~= KEYS[2] then redis.call('UNLINK', KEYS[i]) end\n  if item then\n",
    ),
    ("nobody knows that any left", "  redis.call('HINCRBY', KEYS[1], 'removed', count)\n", ""),
    ("none left and it counts", "if count > 0 then", "if true then"),
    ("only the first one goes", "for i = 3, #KEYS do", "for i = 3, math.min(3, #KEYS) do"),
)

PEEK = (
    ("no more than one page", "if #read < 16 then", "if true then"),
    ("pages overlap", "    from = '(' .. item[1]\n", "    from = item[1]\n"),
    ("more than asked for", "math.min(16, most - #found)", "16"),
    ("long rows are shown", "#entry[8] <= tonumber(ARGV[4]) and entry[8] or ''", "entry[8]"),
    ("rows are not bounded", "bytes + #rows > tonumber(ARGV[5])", "false"),
    ("a byte too few is shown", "bytes + #rows > tonumber(ARGV[5])", "bytes + #rows >= tonumber(ARGV[5])"),
    ("rows are not counted", "    bytes = bytes + #rows\n", ""),
    ("what is large for a page is never read", "if #found > 0 and bytes", "if bytes"),
    ("what is beyond the page is skipped", "      return found\n", "      from = '(' .. item[1]\n      break\n"),
    ("large rows are not named", "entry[14], entry[10], entry[12]", "entry[14], '', entry[12]"),
    ("the range has no end", "from, ARGV[2], 'COUNT'", "from, '+', 'COUNT'"),
)
