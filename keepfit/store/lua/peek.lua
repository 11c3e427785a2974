-- peek: read dead letters, oldest first, without the rows of large ones.
--
-- KEYS[1] dead         stream of dead letters
-- ARGV[1] from         id, or '-', or '(' and the id to begin after
-- ARGV[2] to           id, or '+'
-- ARGV[3] entries max  number of dead letters to read
-- ARGV[4] rows max     bytes; longer rows are left out
-- ARGV[5] bytes max    bytes of rows to read in total (at least one dead letter is read)
--
-- `big` names the key that holds a large request's rows; it is '' if they are in the stream. `size` is in bytes, `at`
-- in milliseconds since 1970, `head` is the begin of the rows' msgpack, which begins with the number of rows.
--
-- returns {{id, generation, sequence, reason, at, big, size, head, rows or ''}...}
local found, bytes, from, most = {}, 0, ARGV[1], tonumber(ARGV[3])
while #found < most do
  local read = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', math.min(16, most - #found))
  for _, item in ipairs(read) do
    local entry = item[2]
    local rows = #entry[8] <= tonumber(ARGV[4]) and entry[8] or ''
    if #found > 0 and bytes + #rows > tonumber(ARGV[5]) then
      return found
    end
    bytes = bytes + #rows
    found[#found + 1] = {item[1], entry[2], entry[4], entry[6], entry[14], entry[10], entry[12],
      string.sub(entry[8], 1, 16), rows}
    from = '(' .. item[1]
  end
  if #read < 16 then
    break
  end
end
return found
