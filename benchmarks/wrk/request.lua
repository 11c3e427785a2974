-- request: what wrk sends, the same for every system but for the envelope around the numbers.
--
-- args[1] template: the body, with one %.6f for each of four numbers and, where it learns, one for the target
-- args[2] rows: "fresh" (new numbers in each request) or "repeated" (one row again and again)
-- args[3] seed: whole number; another one for each run, so that no run repeats the rows of one before
-- args[4] paths: a file with one path a line; '' sends all to the path of the URL
-- args[5] exponent: path number k is asked for with a probability like 1 / k ^ exponent; 0 is uniform
-- prints one line of JSON at the end, RESULT before it; latencies are microseconds

local template, fresh, paths, cumulated

local function read_paths(file, exponent)
  paths, cumulated = {}, {}
  local total = 0
  for line in io.lines(file) do
    paths[#paths + 1] = line
    total = total + 1 / (#paths) ^ exponent
    cumulated[#paths] = total
  end
  for i = 1, #paths do
    cumulated[i] = cumulated[i] / total
  end
end

-- The first path whose share of the whole reaches a random number.
local function next_path()
  local wanted, low, high = math.random(), 1, #paths
  while low < high do
    local middle = math.floor((low + high) / 2)
    if cumulated[middle] < wanted then
      low = middle + 1
    else
      high = middle
    end
  end
  return paths[low]
end

-- Uniform in -2..2; the target is what benchmarks/model.py makes of a row, without its noise.
local function body()
  local a, b, c, d = math.random() * 4 - 2, math.random() * 4 - 2, math.random() * 4 - 2, math.random() * 4 - 2
  return string.format(template, a, b, c, d, a + 2 * b - c + 0.5 * d)
end

function init(args)
  template = args[1]
  fresh = args[2] == 'fresh'
  math.randomseed(tonumber(args[3]))
  if args[4] ~= nil and args[4] ~= '' then
    read_paths(args[4], tonumber(args[5]))
  end
  wrk.method = 'POST'
  wrk.headers['Content-Type'] = 'application/json'
  wrk.body = body()
end

function request()
  return wrk.format(nil, paths and next_path(), nil, fresh and body() or nil)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "max_us": %.1f, '
      .. '"bad_status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
