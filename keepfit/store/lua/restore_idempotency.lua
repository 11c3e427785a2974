-- restore_idempotency: before a lost model is installed with requests from the row log, store the first answers to the
-- calls of these requests, so that repeated calls are recognized.
--
-- The caller claims the model with it for ten minutes. A later restore, which has a later generation, takes the claim
-- over, and install refuses the earlier restore. So the stored answers and the live model are of the same restore.
--
-- KEYS[1] state              hash of the model
-- KEYS[2] lock               lease that learns the model, or a restore that has claimed it
-- KEYS[3...] idempotency     first answer to a call, one key each
-- ARGV[1] generation         integer that the restored model will have
-- ARGV[2] born               integer, generation in which the model was created
-- ARGV[3...] answers         for each key '<milliseconds until it expires> <digest> <first sequence> <count>'
--
-- returns 1 stored; 0 the model is live, or claimed for a later generation: nothing was changed
local live = redis.call('HGET', KEYS[1], 'generation')
if live and tonumber(live) >= tonumber(ARGV[2]) then
  return 0
end
local claim = string.match(redis.call('GET', KEYS[2]) or '', '^restore (%d+)$')
if claim and tonumber(claim) > tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], 'restore ' .. ARGV[1], 'PX', 600000)
local ttl, answer = {}, {}
for i = 3, #ARGV do
  ttl[i], answer[i] = string.match(ARGV[i], '^(%d+) (.+)$')
end
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], answer[i] .. ' ' .. ARGV[1], 'PX', ttl[i])
end
return 1
