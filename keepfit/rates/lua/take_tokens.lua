-- take_tokens: take tokens from the bucket of an API key, which all gateways share.
--
-- KEYS[1] bucket     tokens, and the microseconds since 1970 at which there were so many, separated by a space. Without
--                    it the bucket is full
-- ARGV[1] rate       tokens that are added per second
-- ARGV[2] burst      most tokens in the bucket
-- ARGV[3] wanted     tokens to take, if there are so many
--
-- returns {tokens taken; tokens left, as text, because they have decimals}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens = burst
local stored = redis.call('GET', KEYS[1])
if stored then
  local before, at = string.match(stored, '^(%S+) (%S+)$')
  -- A clock that was set back adds nothing; one that was set forward fills the bucket, and no more.
  tokens = math.min(burst, before + math.max(0, now - at) * rate / 1000000)
end
local taken = math.min(wanted, math.floor(tokens))
local left = tokens - taken
-- It expires when it is full.
local ttl = string.format('%.0f', math.ceil((burst - left) / rate * 1000) + 1000)
redis.call('SET', KEYS[1], string.format('%.17g %.0f', left, now), 'PX', ttl)
return {taken, string.format('%.17g', left)}
