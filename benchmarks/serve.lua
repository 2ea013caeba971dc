-- For wrk: POST the JSON lines of a file to /recommend, in turn, and print one line of JSON.
-- wrk … -s serve.lua URL -- FILE

local threads = {}
local requests = {}
local place = 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  local headers = {["Content-Type"] = "application/json"}
  for line in io.lines(arguments[1]) do
    table.insert(requests, wrk.format("POST", "/recommend", headers, line))
  end
  place = math.random(#requests)
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function response(status)
  local name = "status_" .. status
  _G[name] = (_G[name] or 0) + 1
end

function done(summary, latency)
  local parts = {}
  for status = 100, 599 do
    local sum = 0
    for _, thread in ipairs(threads) do
      sum = sum + (thread:get("status_" .. status) or 0)
    end
    if sum > 0 then
      table.insert(parts, string.format('"%d": %d', status, sum))
    end
  end
  local errors = summary.errors
  io.write(string.format(
    'result {"seconds": %.3f, "statuses": {%s}, "not_connected": %d, "broken": %d, ' ..
    '"timed_out": %d, "p50_ms": %.3f, "p99_ms": %.3f, "largest_ms": %.3f}\n',
    summary.duration / 1e6, table.concat(parts, ", "), errors.connect, errors.read + errors.write,
    errors.timeout, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
