-- request: requests of wrk, the same for every system except for the JSON around the numbers.
--
-- args[1] template: the body, with one %.6f for each of four numbers and, to learn, one for the target
-- args[2] rows: "fresh" (new numbers in each request) or "repeated" (the same row in each request)
-- args[3] seed: integer, different for each run, so that no run repeats the rows of another
-- args[4] paths: a file with one path per line; '' sends all requests to the path of the URL
-- args[5] exponent: path number k has a probability proportional to 1 / k ^ exponent; 0 is uniform
-- prints at the end one line: RESULT and a JSON object; latencies are microseconds

local template, fresh, paths, cumulative

local function read_paths(file, exponent)
  paths, cumulative = {}, {}
  local total = 0
  for line in io.lines(file) do
    paths[#paths + 1] = line
    total = total + 1 / (#paths) ^ exponent
    cumulative[#paths] = total
  end
  for i = 1, #paths do
    cumulative[i] = cumulative[i] / total
  end
end

-- Return the first path whose cumulative probability reaches a random number.
local function next_path()
  local target, low, high = math.random(), 1, #paths
  while low < high do
    local middle = math.floor((low + high) / 2)
    if cumulative[middle] < target then
      low = middle + 1
    else
      high = middle
    end
  end
  return paths[low]
end

-- Return a body with numbers uniform in -2..2; the target is that of benchmarks/model.py without its noise.
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
