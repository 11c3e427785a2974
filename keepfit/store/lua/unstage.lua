-- unstage: delete the staged rows of a large request, unless the request was accepted.
--
-- KEYS[1] big   staged rows; accepted rows have no time to live
--
-- returns 1 deleted; 0 the request was accepted, or the rows are gone
if redis.call('PTTL', KEYS[1]) < 0 then
  return 0
end
return redis.call('UNLINK', KEYS[1])
