"""Mistakes to put into the scripts that keep models.

Each is (what is wrong, text that stands in the script once, text in its place).
"""

ACCEPT = (
    (
        "a missing model has an inbox",
        "if not state[1] then\n  return {'missing'}\nend",
        "if not state[1] then state = {ARGV[1], '0', '0', '0', false, '', '0', false} end",
    ),
    ("another generation's rows are taken", "state[1] ~= ARGV[1]", "false"),
    ("a known key is not looked for", "if seen then", "if false then"),
    (
        "a key from before the sequences began counts",
        "if tonumber(generation) >= tonumber(state[9] or state[1])",
        "if true",
    ),
    ("a key from before a return is forgotten", "tonumber(state[9] or state[1])", "tonumber(state[1])"),
    ("a repeat may bring another body", "if digest == ARGV[2] then", "if true then"),
    (
        "who has not heard of a return is not heard",
        "if digest == ARGV[2] then",
        "if digest == ARGV[2] and state[1] == ARGV[1] then",
    ),
    ("who knows another recipe is told of a conflict", "if state[1] == ARGV[1] then", "if true then"),
    (
        "a repeat is answered with what comes next",
        "{'ok', tonumber(first), tonumber(count)",
        "{'ok', accepted + 1, tonumber(count)",
    ),
    ("any width is taken", "state[5] ~= ARGV[3]", "false"),
    ("the width is not noted", "  if ARGV[3] ~= '0' then\n", "  if false then\n"),
    ("a change sets the width", "  if ARGV[3] ~= '0' then\n", "  if true then\n"),
    ("a change must have the width of rows", "if ARGV[3] ~= '0' and state[5]", "if state[5]"),
    ("large rows may be lost in part", "redis.call('STRLEN', KEYS[5]) ~= big", "redis.call('EXISTS', KEYS[5]) == 0"),
    ("large rows may be lost", "if big > 0 and redis.call('STRLEN', KEYS[5]) ~= big then", "if false then"),
    ("large rows go after a while", "    redis.call('PERSIST', KEYS[5])\n", ""),
    ("large rows count as their digest", "local size = big > 0 and big or #ARGV[i]", "local size = #ARGV[i]"),
    ("one more request than may wait", "waiting + count >= tonumber(ARGV[5])", "waiting + count > tonumber(ARGV[5])"),
    ("a call's own requests are not counted", "waiting + count >= tonumber(ARGV[5])", "waiting >= tonumber(ARGV[5])"),
    ("bytes are not bounded", "bytes + size > tonumber(ARGV[6])", "false"),
    ("a byte too few may wait", "bytes + size > tonumber(ARGV[6])", "bytes + size >= tonumber(ARGV[6])"),
    ("a large request is refused when alone", "(waiting + count > 0 and bytes", "(bytes"),
    ("bytes are not added", "  bytes = bytes + size\n", ""),
    ("links do not cover the one before", "redis.sha1hex(chain .. ':' .. ARGV[i])", "redis.sha1hex(ARGV[i])"),
    ("the chain is not kept", "'chain', chain,\n", "\n"),
    (
        "accepted counts too few",
        "string.format('%.0f', accepted + count), 'chain'",
        "string.format('%.0f', accepted + 1), 'chain'",
    ),
    ("the key is not noted", "redis.call('SET', KEYS[3], string", "tostring(string"),
    ("the key is noted for ever", ", 'PX', ARGV[4])", ")"),
    ("the key is noted with the sequence after", "ARGV[2], accepted + 1, count", "ARGV[2], accepted + count, count"),
    ("a key is noted where nothing was accepted", "if count > 0 then", "if true then"),
    ("a locked model seems alone", "1 - redis.call('EXISTS', KEYS[4])", "1"),
    ("it is not said how many wait", "alone, waiting + count, pace}", "alone, waiting, pace}"),
)

COMPARISONS = """\
if not state[1] or state[1] ~= ARGV[1] then
  return 0
end
if state[2] ~= ARGV[2] or state[3] ~= ARGV[3] then
  return -1
end
local last = redis.call('XRANGE', KEYS[3], ARGV[4] .. '-0', ARGV[4] .. '-0')
if not last[1] or last[1][2][4] ~= ARGV[5] then
  return -2
end
"""
NO_COMPARISONS = """\
if not state[1] then
  return 0
end
local last = redis.call('XRANGE', KEYS[3], ARGV[4] .. '-0', ARGV[4] .. '-0')
"""

COMMIT = (
    ("the lock is trusted, nothing is compared", COMPARISONS, NO_COMPARISONS),
    ("another generation is committed to", "state[1] ~= ARGV[1]", "false"),
    ("the digest is not compared", "state[2] ~= ARGV[2]", "false"),
    ("the learned count is not compared", "state[3] ~= ARGV[3]", "false"),
    ("a sleeper's commit is let through", "state[2] ~= ARGV[2] or state[3] ~= ARGV[3]", "false"),
    ("the chain is not compared", " or last[1][2][4] ~= ARGV[5]", ""),
    ("a lost stage is not noticed", "if redis.call('EXISTS', KEYS[4]) == 0 then", "if false then"),
    (
        "the stage is looked for after the first write",
        "if redis.call('EXISTS', KEYS[4]) == 0 then",
        "redis.call('HINCRBY', KEYS[1], 'version', 1)\nif redis.call('EXISTS', KEYS[4]) == 0 then",
    ),
    ("the bundle goes after a minute", "redis.call('PERSIST', KEYS[2])\n", ""),
    ("the bundle stays the old one", "redis.call('RENAME', KEYS[4], KEYS[2])", "redis.call('UNLINK', KEYS[4])"),
    ("two versions", "'version', 1)", "'version', 2)"),
    ("bytes are not given back", "-tonumber(ARGV[9])", "0"),
    ("attempts are not set back", "'attempts', 0,", "'attempts', 1,"),
    ("the old digest stays", "'digest', ARGV[6],", ""),
    ("learned is not counted", "'learned', ARGV[4],", ""),
    ("rows seen are not counted", "'rows_seen', ARGV[7],", ""),
    ("a row put aside is thrown away", "if ARGV[12] ~= '' then", "if false then"),
    ("a large row put aside is not named", "request[6] or ''", "''"),
    ("a large row put aside counts as nothing", "request[8] or #request[2]", "#request[2]"),
    ("a row put aside has a number of its own", "state[1] .. '-' .. ARGV[4], 'generation'", "'*', 'generation'"),
    ("a row put aside has lost its rows", "'rows', request[2]", "'rows', ''"),
    ("the reason is not kept", "'reason', ARGV[12]", "'reason', ''"),
    ("the time is in seconds", "time[1] * 1000 + math.floor(time[2] / 1000)", "time[1]"),
    ("the inbox keeps what was learned", "tonumber(ARGV[4]) + 1) .. '-0')", "tonumber(ARGV[4])) .. '-0')"),
    ("the inbox loses one that was not learned", "tonumber(ARGV[4]) + 1) .. '-0')", "tonumber(ARGV[4]) + 2) .. '-0')"),
    (
        "the inbox is emptied",
        "redis.call('XTRIM', KEYS[3], 'MINID', '=', string.format('%.0f', tonumber(ARGV[4]) + 1) .. '-0')",
        "redis.call('DEL', KEYS[3])",
    ),
    ("large rows stay behind", "for i = 6, #KEYS do", "for i = 7, #KEYS do"),
    ("a row put aside is not told of", "  put_aside = '1'\n", ""),
    ("the pace is not noted", "'pace', ARGV[13])", "'pace', 1)"),
    ("what was changed is not noted", "if ARGV[14] ~= '' then", "if false then"),
    ("that nothing was changed is noted", "if ARGV[14] ~= '' then", "if true then"),
)

TAKE = (
    ("another's lock is taken over", "holder and holder ~= ARGV[1]", "false"),
    ("the worker's own lock keeps it out", "holder and holder ~= ARGV[1]", "holder"),
    ("nothing is locked", "redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])\n", ""),
    ("the lock is for ever", ", 'PX', ARGV[2])", ")"),
    (
        "the first request is left out",
        "local entries, bytes, next_id = {}, 0, state[4]",
        "local entries, bytes, next_id = {}, 0, state[4] + 1",
    ),
    ("pages overlap", "next_id = string.match(item[1], '^(%d+)')", "local next_id = string.match(item[1], '^(%d+)')"),
    ("no more than one page", "if #read < 16 then", "if true then"),
    (
        "one request too many",
        "if #entries < most and (#entries == 0",
        "if #entries <= most and (#entries == 0",
    ),
    ("a large request is never read", "(#entries == 0 or bytes + size", "(bytes + size"),
    ("bytes are not bounded", "bytes + size <= tonumber(ARGV[5])", "true"),
    ("large rows count as nothing", "tonumber(item[2][8] or #item[2][2])", "#item[2][2]"),
    ("attempts are not counted", "  attempts = attempts + 1\n", "  attempts = 1\n"),
    ("attempts are counted where nothing waits", "if #entries > 0 then", "if true then"),
    (
        "one death makes suspects",
        "attempts == 1 and tried - learned > 1 and suspect <= learned",
        "false",
    ),
    ("suspects have the benefit of doubt", " and suspect <= learned then", " then"),
    ("all have the benefit of doubt for ever", "if attempts == 1 and tried", "if attempts > 0 and tried"),
    ("more are read the second time", "  most = math.min(most, tried - learned)\n", ""),
    ("nobody is suspect", "  suspect = tried\n", ""),
    ("half of them have the deaths of all", "    attempts = 0\n", ""),
    ("the deaths of one that is alone are forgotten", "  if tried - learned > 1 then", "  if true then"),
    ("suspects are not halved", "math.floor((suspect - learned) / 2)", "suspect - learned"),
    ("a third is read", "math.floor((suspect - learned) / 2)", "math.floor((suspect - learned) / 3)"),
    ("half of one is none", "math.max(1, math.floor((suspect - learned) / 2))", "math.floor((suspect - learned) / 2)"),
    ("one that was learned is suspect still", "if suspect > learned then", "if suspect > 0 then"),
    (
        "all suspects are read where more may be",
        "most = math.min(most, math.max(1, math",
        "most = math.max(most, math.max(1, math",
    ),
    (
        "it is not noted what was read",
        "'tried', string.format('%.0f', entries[#entries][1]),\n    'suspect'",
        "'suspect'",
    ),
    ("suspects are forgotten", ",\n    'suspect', string.format('%.0f', suspect))", ")"),
    ("a known bundle is sent again", " and state[5] ~= ARGV[3] then", " then"),
    ("a bundle is never sent", "if state[5] ~= '' and state[5] ~= ARGV[3]", "if ARGV[3] ~= ''"),
)

INSTALL = (
    ("a live model is overwritten", "live and tonumber(live) >= tonumber(ARGV[12])", "false"),
    ("what is left of a predecessor stays", "live and tonumber(live) >= tonumber(ARGV[12])", "live"),
    (
        "a model of the very generation is overwritten",
        "tonumber(live) >= tonumber(ARGV[12])",
        "tonumber(live) > tonumber(ARGV[12])",
    ),
    ("a lost stage is not noticed", "if ARGV[8] ~= '' and redis.call('EXISTS', KEYS[3]) == 0 then", "if false then"),
    ("a predecessor's inbox stays", "KEYS[2], KEYS[4], KEYS[5]", "KEYS[2], KEYS[5]"),
    ("a predecessor's lock stays", "KEYS[4], KEYS[5], KEYS[6])", "KEYS[4], KEYS[6])"),
    ("a predecessor's dead stay", "KEYS[4], KEYS[5], KEYS[6])", "KEYS[4], KEYS[5])"),
    ("a predecessor's state shows through", "redis.call('DEL', KEYS[1], KEYS[2]", "redis.call('DEL', KEYS[2]"),
    ("a predecessor's bundle stays", "redis.call('DEL', KEYS[1], KEYS[2], ", "redis.call('DEL', KEYS[1], "),
    ("a predecessor's large rows stay", "for i = 7, #KEYS do", "for i = 8, #KEYS do"),
    ("large rows that come in late stay", "  answer[#answer + 1] = item[2][6]\n", ""),
    ("the bundle goes after a minute", "  redis.call('PERSIST', KEYS[2])\n", ""),
    ("sequences begin anew", "'accepted', ARGV[6], 'learned', ARGV[6]", "'accepted', 0, 'learned', 0"),
    ("the chain begins anew", "'chain', ARGV[7]", "'chain', ''"),
    ("the snapshot is not known", "'snapshot', ARGV[10]", "'snapshot', ''"),
    ("the snapshot counts as none", "ARGV[10] == '' and '-1' or ARGV[4]", "'-1'"),
    ("the width is not known", "if ARGV[11] ~= '' then", "if false then"),
    ("what was changed is not known", "if ARGV[16] ~= '' then", "if false then"),
    ("that nothing was changed is noted", "if ARGV[16] ~= '' then", "if true then"),
    ("nobody is told", "redis.call('PUBLISH', ARGV[13], ", "tostring("),
)

REWIND = (
    ("a repeat is refused", "if state[1] == ARGV[3] then", "if false then"),
    ("a repeat leaves its stage", "  redis.call('UNLINK', KEYS[3])\n", ""),
    ("another generation goes back", "state[1] ~= ARGV[1]", "not state[1]"),
    ("what was learned meanwhile is forgotten", " or state[2] ~= ARGV[2] then", " then"),
    ("a lost stage is not noticed", "if redis.call('EXISTS', KEYS[3]) == 0 then", "if false then"),
    ("the bundle goes after a minute", "redis.call('PERSIST', KEYS[2])\n", ""),
    ("the generation stays", "'generation', ARGV[3], 'origin'", "'origin'"),
    ("sequences seem to begin anew", "state[4] or state[1]", "ARGV[3]"),
    ("a return before is forgotten", "state[4] or state[1]", "state[1]"),
    ("the version stays", "'version', ARGV[4], ", ""),
    ("rows seen stay", "'rows_seen', ARGV[5],", ""),
    ("the old digest stays", "'digest', ARGV[6], ", ""),
    ("the metrics stay", "'metrics', ARGV[7], ", ""),
    ("a later snapshot seems its own", "'snapshot', '', ", ""),
    ("a later snapshot hides its own", "'snapshot_version', '-1', ", ""),
    ("who had it in hand died of it", ", 'attempts', 0)", ")"),
    ("the width is not known", "if ARGV[8] ~= '' then", "if false then"),
    ("nobody is told", "redis.call('PUBLISH', ARGV[10], ", "tostring("),
    ("changed parameters are not known", "if ARGV[9] ~= '' then", "if false then"),
    ("later changes show through", "redis.call('HDEL', KEYS[1], 'changed')", "tostring(KEYS[1])"),
    ("it is told that nothing is learned", "state[3], ARGV[5], '0'", "'0', ARGV[5], '0'"),
)

# These name their script first.
OTHERS = (
    ("unlock", "another's lock is let go", "redis.call('GET', KEYS[2]) ~= ARGV[1]", "false"),
    ("unlock", "the lock is let go while mail waits", "if not waits or ARGV[2] == '1' then", "if true then"),
    ("unlock", "force is not heard", " or ARGV[2] == '1'", ""),
    ("unlock", "who lives counts as dead", "if ARGV[3] == '1' and", "if false and"),
    ("unlock", "the dead give their attempts back", "if ARGV[3] == '1' and ", "if "),
    ("unlock", "more is given back than there is", " and tonumber(state[3] or 0) > 0", ""),
    ("unlock", "all attempts are given back", "'attempts', -1)", "'attempts', -tonumber(state[3]))"),
    ("unlock", "mail is not told of", "return waits and 1 or 0", "return 0"),
    ("renew", "another's lock is renewed", "redis.call('GET', KEYS[1]) ~= ARGV[1]", "false"),
    ("renew", "nothing is renewed", "return redis.call('PEXPIRE', KEYS[1], ARGV[2])", "return 1"),
    ("delete", "the inbox stays", "KEYS[2], KEYS[3], KEYS[4]", "KEYS[2], KEYS[4]"),
    ("delete", "the lock stays", "KEYS[3], KEYS[4], KEYS[5])", "KEYS[3], KEYS[5])"),
    ("delete", "the bundle stays", "KEYS[1], KEYS[2], KEYS[3]", "KEYS[1], KEYS[3]"),
    ("delete", "large rows stay", "for i = 6, #KEYS do", "for i = 7, #KEYS do"),
    ("delete", "large rows that come in late stay", "  answer[#answer + 1] = item[2][6]\n", ""),
    ("delete", "nobody is told", "redis.call('PUBLISH', ARGV[1], ", "tostring("),
    ("note", "an older snapshot is noted", "tonumber(state[2]) >= tonumber(ARGV[2])", "false"),
    ("note", "another generation's snapshot is noted", "state[1] ~= ARGV[1]", "false"),
    ("note", "the version is not noted", ", 'snapshot_version', ARGV[2])", ")"),
    ("settle", "a later change is forgotten", "tonumber(score) > tonumber(ARGV[2])", "false"),
    ("settle", "nothing is settled", "tonumber(score) > tonumber(ARGV[2])", "tonumber(score) >= tonumber(ARGV[2])"),
    ("load", "the bundle is not read", "redis.call('GET', KEYS[2]) or ''", "''"),
)
