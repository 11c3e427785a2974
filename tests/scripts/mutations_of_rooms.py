"""Mistakes to put into the scripts that keep waiting rooms.

Each is (what is wrong, text that stands in the script once, text in its place).
"""

PUSH = (
    ("a model waits twice", "taken and redis.call('SADD', KEYS[2], model) == 1", "taken"),
    ("a model does not wait", "redis.call('RPUSH', KEYS[1], model)", "tostring(model)"),
    ("newer models come first", "redis.call('RPUSH', KEYS[1], model)", "redis.call('LPUSH', KEYS[1], model)"),
    (
        "one question more than may wait",
        "taken = range[2] - range[1] < tonumber(ARGV[4])",
        "taken = range[2] - range[1] <= tonumber(ARGV[4])",
    ),
    ("questions are not bounded", "taken = range[2] - range[1] < tonumber(ARGV[4])", "taken = true"),
    (
        "what is past its deadline keeps others out",
        "while range[2] - range[1] >= tonumber(ARGV[4]) do",
        "while false do",
    ),
    ("living questions make room", "if oldest and tonumber(string.sub(oldest, 2, 14)) >= now then", "if false then"),
    ("a refused question is not named", "answer[#answer + 1] = i - 4", "taken = false"),
    ("a question takes another's place", "      range[2] = range[2] + 1\n", ""),
    (
        "the range is not kept",
        "redis.call('HSET', KEYS[6], model .. ':first', range[1], model .. ':next', range[2])",
        "redis.call('HSETNX', KEYS[6], model .. ':next', range[2])",
    ),
    ("a model's first number is not kept", "model .. ':first', range[1], model", "model .. ':first', 0, model"),
    ("no lease is sent for", "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\nanswer[1] = 1", "answer[1] = 0"),
    ("the lease is not registered", "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\n", ""),
    ("more leases than workers", " or leases >= redis.call('SCARD', KEYS[4])", ""),
    ("a lease too few", "leases >= redis.call('SCARD', KEYS[4])", "leases + 1 >= redis.call('SCARD', KEYS[4])"),
    ("a lease more for each push", "late < tonumber(ARGV[3]) or leases", "leases"),
    ("a push made again is not heard", "if redis.call('ZSCORE', KEYS[3], ARGV[1]) then", "if false then"),
    ("an empty room is rung for", "if redis.call('LLEN', KEYS[1]) == 0 then\n  return answer\nend", ""),
    ("the wait does not begin with the first entry", "if idle then", "if false then"),
    (
        "a first lease counts as late",
        "redis.call('SET', KEYS[5], string.format('%.0f', now + 100))",
        "redis.call('SET', KEYS[5], 0)",
    ),
    ("deadlines are forgotten", "now + tonumber(string.sub(ARGV[i], 65, 73))", "0"),
)

CLAIM = (
    ("a lease that is over claims", "if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then", "if false then"),
    (
        "renewing lays down",
        "if models > 0 then\n  redis.call('DEL', KEYS[4])",
        "redis.call('DEL', KEYS[4])\nif models > 0 then",
    ),
    ("what is done is not laid down", "  redis.call('DEL', KEYS[4])\n", ""),
    ("the lease is not renewed", "redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])\n", ""),
    (
        "nobody knows who works",
        "redis.call('HSET', KEYS[7], ARGV[1], ARGV[3] .. ' ' .. string.format('%.0f', now))",
        "tostring(now)",
    ),
    ("those asleep count as awake", "if now - tonumber(last) < tonumber(ARGV[7]) then", "if true then"),
    (
        "no model is anybody's own",
        "if awake[tonumber(string.sub(model, 1, 8), 16) % #awake + 1] == ARGV[3] then",
        "if true then",
    ),
    ("nobody helps", "if #own == 0 and #others > 0 then", "if false then"),
    ("who helps takes all", "for i = 1, math.ceil(#others / #awake) do", "for i = 1, #others do"),
    ("slow models have no bound", "local bound = redis.call('HGET', KEYS[9], model)", "local bound = false"),
    ("bounds are not told", "    table.insert(answer[2], bound)\n", "    table.insert(answer[2], '0')\n"),
    ("one lease takes the others' share", ", math.ceil((next_number - first) / #awake))", ")"),
    ("more questions than asked for", "taken < budget and taken - began", "taken - began"),
    ("what is past its deadline is computed", "question and tonumber(string.sub(question, 2, 14)) >= now", "question"),
    ("suspects take others along", "      budget = 0\n", ""),
    ("suspects are taken with others", "    if suspect and taken > 0 then\n      break\n    end\n", ""),
    (
        "a question is given twice",
        "    redis.call('HDEL', KEYS[8], model .. ':' .. first)\n    first = first + 1\n",
        "    first = first + 1\n",
    ),
    ("a question is skipped", "    first = first + 1\n", "    first = first + (next_number - first > 3 and 2 or 1)\n"),
    ("what was taken is not in hand", "      held[#held + 1] = model .. question\n", ""),
    ("a model with more left waits no more", "    redis.call('RPUSH', KEYS[1], model)\n  else", "  else"),
    (
        "a model with more left stays in front",
        "redis.call('RPUSH', KEYS[1], model)\n  else",
        "redis.call('LPUSH', KEYS[1], model)\n  else",
    ),
    ("the first number is not kept", "    redis.call('HSET', KEYS[8], model .. ':first', first)\n", ""),
    ("an idle model's range stays", "    redis.call('HDEL', KEYS[8], model .. ':first', model .. ':next')\n", ""),
    ("an idle model counts as waiting", "    redis.call('SREM', KEYS[2], model)\n  end\nend", "  end\nend"),
    ("a learner's model counts as waiting", "    redis.call('SREM', KEYS[2], model)\n    held[i]", "    held[i]"),
    (
        "more models than asked for",
        "if i > models or (asks and taken >= budget) then",
        "if asks and taken >= budget then",
    ),
    ("a model stays in the list", "  redis.call('LREM', KEYS[1], 1, model)\n", ""),
    ("nothing is in hand", "  redis.call('RPUSH', KEYS[4], unpack(held, i, math.min(i + 999, #held)))\n", ""),
    ("what is in hand stays for ever", "  redis.call('PEXPIRE', KEYS[4], ARGV[6])\n", ""),
    ("a claim does not end the wait", "redis.call('SET', KEYS[6], now)\n", ""),
    ("jobs that wait are not told of", "redis.call('LLEN', KEYS[5])", "0"),
)

RELEASE = (
    ("a lease ends while work waits", "ARGV[2] == 'idle' and", "false and"),
    ("the last lease leaves", "redis.call('ZCARD', KEYS[2]) < 2", "false"),
    ("the lease stays registered", "redis.call('ZREM', KEYS[2], ARGV[1])\n", ""),
    ("the holder stays", "redis.call('HDEL', KEYS[4], ARGV[1])\n", ""),
    ("what was in hand stays", "redis.call('DEL', KEYS[3])\n", ""),
)

ABANDON = (
    ("the dead count as holders", "redis.call('HDEL', KEYS[5], ARGV[1])\n", ""),
    ("a lease that is over is abandoned", "redis.call('ZREM', KEYS[3], ARGV[1]) == 0", "false"),
    (
        "the lease stays registered",
        "redis.call('ZREM', KEYS[3], ARGV[1]) == 0",
        "not redis.call('ZSCORE', KEYS[3], ARGV[1])",
    ),
    ("the order is turned round", "for i = #entries, 1, -1 do", "for i = 1, #entries do"),
    ("the last one in hand is lost", "for i = #entries, 1, -1 do", "for i = #entries - 1, 1, -1 do"),
    (
        "deaths are not counted",
        "tonumber(string.sub(question, 1, 1)) + 1 or 0",
        "tonumber(string.sub(question, 1, 1)) or 0",
    ),
    ("a question may take one worker more along", "deaths >= tonumber(ARGV[2])", "deaths > tonumber(ARGV[2])"),
    (
        "a question that kills is thrown away",
        "redis.call('RPUSH', KEYS[7], string.sub(question, 15))",
        "tostring(question)",
    ),
    (
        "the first number is not moved",
        "HINCRBY', KEYS[6], model .. ':first', -1)",
        "HINCRBY', KEYS[6], model .. ':first', 0)",
    ),
    ("an idle model has no range", "      redis.call('HSETNX', KEYS[6], model .. ':next', first + 1)\n", ""),
    (
        "questions are not put back",
        "      redis.call('HSET', KEYS[6], model .. ':' .. first, deaths .. string.sub(question, 2))\n",
        "",
    ),
    ("the model waits twice", "if redis.call('SADD', KEYS[2], model) == 1 then", "if true then"),
    ("the model waits behind the others", "redis.call('LPUSH', KEYS[1], model)", "redis.call('RPUSH', KEYS[1], model)"),
    ("the dead have it in hand still", "redis.call('DEL', KEYS[4])\n", ""),
)
