"""Mutants of the scripts over run queues.

Each is (what is wrong, text that occurs once in the script, its replacement).
"""

PUSH = (
    ("a model is queued twice", "taken and redis.call('SADD', KEYS[2], model) == 1", "taken"),
    ("a model is not queued", "redis.call('RPUSH', KEYS[1], model)", "tostring(model)"),
    ("no lease is woken", "if added then", "if false then"),
    ("each push wakes leases", "if added then", "if #ARGV > 5 then"),
    ("wake-ups accumulate", "'MAXLEN', 1, ", ""),
    ("a wake-up does not tell the run queue", "'models', KEYS[1])", "'models', '')"),
    (
        "new models are queued at the front",
        "redis.call('RPUSH', KEYS[1], model)",
        "redis.call('LPUSH', KEYS[1], model)",
    ),
    (
        "one request above the limit is accepted",
        "taken = range[2] - range[1] < tonumber(ARGV[5])",
        "taken = range[2] - range[1] <= tonumber(ARGV[5])",
    ),
    ("requests have no limit", "taken = range[2] - range[1] < tonumber(ARGV[5])", "taken = true"),
    (
        "requests past their deadline count against the limit",
        "while range[2] - range[1] >= tonumber(ARGV[5]) do",
        "while false do",
    ),
    (
        "requests before their deadline are dropped",
        "if oldest and tonumber(string.sub(oldest, 2, 14)) >= now then",
        "if false then",
    ),
    ("a refused request is not reported", "answer[#answer + 1] = i - 5", "taken = false"),
    ("a request overwrites another one", "      range[2] = range[2] + 1\n", ""),
    (
        "the range of requests is not stored",
        "redis.call('HSET', KEYS[6], model .. ':first', range[1], model .. ':next', range[2])",
        "redis.call('HSETNX', KEYS[6], model .. ':next', range[2])",
    ),
    ("the first number of a model is not stored", "model .. ':first', range[1], model", "model .. ':first', 0, model"),
    (
        "a missing lease is not reported",
        "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\nanswer[1] = 1",
        "answer[1] = 0",
    ),
    ("the lease is not registered", "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\n", ""),
    ("there are more leases than workers", " or leases >= redis.call('SCARD', KEYS[4])", ""),
    (
        "the limit of leases is one too low",
        "leases >= redis.call('SCARD', KEYS[4])",
        "leases + 1 >= redis.call('SCARD', KEYS[4])",
    ),
    ("each push adds a lease", "not (is_late or are_busy) or leases", "leases"),
    ("late work adds no lease", "not (is_late or are_busy) or leases", "not are_busy or leases"),
    ("busy leases add no lease", "not (is_late or are_busy) or leases", "not is_late or leases"),
    ("a lease that has not begun is busy", "local are_busy = #holders >= leases", "local are_busy = true"),
    ("one busy lease is enough", "are_busy = are_busy and now", "are_busy = now"),
    (
        "awake leases are busy",
        "are_busy = are_busy and now - tonumber(string.match(holder, '%d+$')) >= tonumber(ARGV[4])",
        "are_busy = are_busy and holder ~= ''",
    ),
    (
        "the time is not reset by one more lease",
        "redis.call('SET', KEYS[5], string.format('%.0f', now + grace))",
        "if leases == 0 then redis.call('SET', KEYS[5], string.format('%.0f', now + grace)) end",
    ),
    ("a repeated push is not recognized", "if redis.call('ZSCORE', KEYS[3], ARGV[1]) then", "if false then"),
    ("a lease is requested for an empty queue", "if redis.call('LLEN', KEYS[1]) == 0 then\n  return answer\nend", ""),
    ("the waiting time does not start with the first entry", "if idle then", "if false then"),
    (
        "work is late at the first lease",
        "redis.call('SET', KEYS[5], string.format('%.0f', now + grace))",
        "redis.call('SET', KEYS[5], leases == 0 and 0 or now)",
    ),
    ("deadlines are not stored", "now + tonumber(string.sub(ARGV[i], 65, 73))", "0"),
)

CLAIM = (
    ("an ended lease claims work", "if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then", "if false then"),
    ("the last batch is not completed", "redis.call('DEL', KEYS[4])\n", ""),
    ("the lease is not renewed", "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\n", ""),
    (
        "the holder is not registered",
        "redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. string.format('%.0f', now))",
        "tostring(now)",
    ),
    ("inactive leases count as active", "now - tonumber(last) < tonumber(ARGV[7])", "true"),
    ("an inactive worker does not count as busy", "if model ~= '' or not is_awake then", "if model ~= '' then"),
    ("only inactive workers count as busy", "if model ~= '' or not is_awake then", "if not is_awake then"),
    (
        "models are not shared by hash",
        "if awake[tonumber(string.sub(model, 1, 8), 16) % #awake + 1] == ARGV[3] then",
        "if true then",
    ),
    ("models of other shares are never claimed", "if #own == 0 and #others > 0 then", "if false then"),
    ("all models of other shares are claimed", "for i = 1, math.ceil(#others / #awake) do", "for i = 1, #others do"),
    (
        "slow models have no limit",
        "local bound, began = redis.call('HGET', KEYS[9], model), taken",
        "local bound, began = false, taken",
    ),
    (
        "learning has no very slow models",
        "local bound, began = redis.call('HGET', KEYS[9], model), taken",
        "local bound, began = asks and redis.call('HGET', KEYS[9], model), taken",
    ),
    (
        "limits of slow models are not returned",
        "      table.insert(answer[2], bound)\n",
        "      table.insert(answer[2], '0')\n",
    ),
    ("requests are not shared between active leases", ", math.ceil((next_number - first) / #awake))", ")"),
    ("more requests than allowed are claimed", "taken < budget and taken - began", "taken - began"),
    (
        "requests past their deadline are returned",
        "request and tonumber(string.sub(request, 2, 14)) >= now",
        "request",
    ),
    ("the deadline is returned, not the time until it", "2, 14)) - now)", "2, 14)))"),
    ("other requests are claimed after a suspect", "      budget = 0\n", ""),
    ("a suspect is claimed after other requests", "    if suspect and taken > 0 then\n      break\n    end\n", ""),
    (
        "a request is returned twice",
        "    redis.call('HDEL', KEYS[8], model .. ':' .. first)\n    first = first + 1\n",
        "    first = first + 1\n",
    ),
    ("a request is skipped", "    first = first + 1\n", "    first = first + (next_number - first > 3 and 2 or 1)\n"),
    ("claimed requests are not recorded", "      held[#held + 1] = model .. request\n", ""),
    ("a model with more requests leaves the queue", "    redis.call('RPUSH', KEYS[1], model)\n  else", "  else"),
    (
        "a model with more requests stays at the front",
        "redis.call('RPUSH', KEYS[1], model)\n  else",
        "redis.call('LPUSH', KEYS[1], model)\n  else",
    ),
    ("the first number is not updated", "    redis.call('HSET', KEYS[8], model .. ':first', first)\n", ""),
    ("the range of an idle model stays", "    redis.call('HDEL', KEYS[8], model .. ':first', model .. ':next')\n", ""),
    ("an idle model counts as queued", "    redis.call('SREM', KEYS[2], model)\n  end\nend", "  end\nend"),
    (
        "a claimed model counts as queued",
        "      redis.call('SREM', KEYS[2], model)\n      taken = taken",
        "      taken = taken",
    ),
    ("a very slow model is claimed with others", "local alone = bound == VERY_SLOW", "local alone = false"),
    ("a very slow model is claimed after others", "if not alone or taken == 0 then", "if true then"),
    ("others are claimed after a very slow model", "    if alone and taken > 0 then", "    if false then"),
    (
        "a busy worker does not count",
        "redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. model .. ' ' .. string.format('%.0f', now))",
        "tostring(now)",
    ),
    ("the last worker claims a very slow model", " or bounds[i] == VERY_SLOW then", " then"),
    ("the last worker claims no slow model", "bounds[i] == VERY_SLOW then", "bounds[i] then"),
    ("a model that another lease restores is claimed", "if is_restored or bounds", "if bounds"),
    ("a lease does not claim what it has restored", " and by ~= ARGV[1] and ", " and "),
    ("marks of ended leases count", " and redis.call('ZSCORE', KEYS[3], by)", ""),
    ("only one worker claims very slow models", "busy > 0 and busy >= redis.call('SCARD', KEYS[10]) - 1", "busy > 0"),
    ("two workers are left to others", "redis.call('SCARD', KEYS[10]) - 1", "redis.call('SCARD', KEYS[10]) - 2"),
    ("models that may not be claimed are not returned", "  answer[2] = kept\n", "  answer[2] = {}\n"),
    ("a slow model is returned without requests", "if bound and taken > began then", "if bound then"),
    (
        "more models than allowed are claimed",
        "if i > models or (asks and taken >= budget) then",
        "if asks and taken >= budget then",
    ),
    ("a claimed model stays in the list", "    redis.call('LREM', KEYS[1], 1, model)\n", ""),
    (
        "claimed entries are not stored",
        "  redis.call('RPUSH', KEYS[4], unpack(held, i, math.min(i + 999, #held)))\n",
        "",
    ),
    ("claimed entries do not expire", "  redis.call('PEXPIRE', KEYS[4], ARGV[6])\n", ""),
    ("a claim does not reset the waiting time", "redis.call('SET', KEYS[6], now)\n", ""),
    ("waiting jobs are not reported", "redis.call('LLEN', KEYS[5])", "0"),
    ("models in the other run queue are not reported", "redis.call('LLEN', KEYS[12])", "0"),
    ("models that are left are not reported", "state[2] = redis.call('LLEN', KEYS[1])\n", ""),
    ("the last wake-up is not reported", "woken[1] and woken[1][1] or '0-0'", "'0-0'"),
    ("late work that is left asks for no lease", "    state[4] = 1\n", ""),
    ("work that is left asks for a lease", "if is_late and state[2] > 0", "if state[2] > 0"),
    ("late work asks for a lease although none is left", "is_late and state[2] > 0 and", "is_late and"),
    (
        "late work asks for a lease beside enough leases",
        " and redis.call('ZCARD', KEYS[3]) < redis.call('SCARD', KEYS[10]) then",
        " then",
    ),
)

RENEW_LEASE = (
    ("an ended lease is renewed", "if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then", "if false then"),
    (
        "the deadline is not set",
        "redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])\n",
        "",
    ),
    ("the answer is always 0", "return 1", "return 0"),
)

MARK_RESTORES = (
    ("the mark of another lease is replaced", "if lease and lease ~= ARGV[1] and ", "if false and "),
    ("a lease cannot mark twice", "lease ~= ARGV[1] and ", ""),
    ("marks of ended leases count", " and redis.call('ZSCORE', KEYS[2], lease)", ""),
    ("models are not marked", "    redis.call('HSET', KEYS[1], ARGV[i], ARGV[1])\n", ""),
    ("marks do not expire", "redis.call('PEXPIRE', KEYS[1], ARGV[2])\n", ""),
)

UNMARK_RESTORES = (
    ("the mark of another lease is removed", "redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1]", "true"),
    ("marks stay", "redis.call('HDEL', KEYS[1], ARGV[i])", "1"),
)

RELEASE = (
    ("a lease ends although models have work", "ARGV[2] == 'idle' and", "false and"),
    ("models to predict do not count", " + redis.call('LLEN', KEYS[2]) > 0", " > 0"),
    ("models to learn do not count", "redis.call('LLEN', KEYS[1]) + ", ""),
    ("the last awake lease ends as a spare one", "if awake == 0 then", "if false then"),
    ("no lease ends as a spare one", "if awake == 0 then", "if true then"),
    ("a lease is spare beside itself", "if lease ~= ARGV[1] and now", "if now"),
    ("a lease is spare beside inactive ones", " and now - tonumber(last) < tonumber(ARGV[3]) then", " and last then"),
    ("the lease stays registered", "redis.call('ZREM', KEYS[3], ARGV[1])\n", ""),
    ("the holder stays registered", "redis.call('HDEL', KEYS[5], ARGV[1])\n", ""),
    ("claimed entries stay", "redis.call('DEL', KEYS[4])\n", ""),
)

ABANDON = (
    ("dead workers stay registered as holders", "redis.call('HDEL', KEYS[7], ARGV[1])\n", ""),
    ("an ended lease is abandoned", "redis.call('ZREM', KEYS[5], ARGV[1]) == 0", "false"),
    (
        "the lease stays registered",
        "redis.call('ZREM', KEYS[5], ARGV[1]) == 0",
        "not redis.call('ZSCORE', KEYS[5], ARGV[1])",
    ),
    ("entries are put back in reverse order", "for i = #entries, 1, -1 do", "for i = 1, #entries do"),
    ("the last claimed entry is lost", "for i = #entries, 1, -1 do", "for i = #entries - 1, 1, -1 do"),
    (
        "deaths are not counted",
        "tonumber(string.sub(request, 1, 1)) + ARGV[3] or 0",
        "tonumber(string.sub(request, 1, 1)) or 0",
    ),
    ("an expiry counts as a death", "+ ARGV[3] or 0", "+ 1 or 0"),
    ("the limit of deaths is one too high", "deaths >= tonumber(ARGV[2])", "deaths > tonumber(ARGV[2])"),
    (
        "a poison request is dropped",
        "redis.call('RPUSH', KEYS[9], string.sub(request, 15))",
        "tostring(request)",
    ),
    (
        "the first number is not decreased",
        "HINCRBY', KEYS[8], model .. ':first', -1)",
        "HINCRBY', KEYS[8], model .. ':first', 0)",
    ),
    ("an idle model gets no range", "      redis.call('HSETNX', KEYS[8], model .. ':next', first + 1)\n", ""),
    (
        "requests are not put back",
        "      redis.call('HSET', KEYS[8], model .. ':' .. first, deaths .. string.sub(request, 2))\n",
        "",
    ),
    ("the model is queued twice", "if redis.call('SADD', KEYS[4], model) == 1 then", "if true then"),
    ("a model to learn is queued twice", "if redis.call('SADD', KEYS[2], model) == 1 then", "if true then"),
    ("the model is put back at the end", "redis.call('LPUSH', KEYS[3], model)", "redis.call('RPUSH', KEYS[3], model)"),
    (
        "a model to learn is put back at the end",
        "redis.call('LPUSH', KEYS[1], model)",
        "redis.call('RPUSH', KEYS[1], model)",
    ),
    ("rows are put back as requests", "redis.call('LPUSH', KEYS[1], model)", "redis.call('LPUSH', KEYS[3], model)"),
    ("claimed entries of the dead worker stay", "redis.call('DEL', KEYS[6])\n", ""),
)
