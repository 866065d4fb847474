-- Renew the leases of running requests, and end those whose gateway is gone.
-- KEYS: epoch, leases
-- ARGV: epoch, is sure, lease us, ids...
-- Gives: 'epoch' | 'ok', ids that are unknown...
local epoch = ARGV[1]
if epoch_differs(KEYS[1], epoch, ARGV[2] == '1') then return { 'epoch' } end
local reply, ends = { 'ok' }, text(now + tonumber(ARGV[3]))
for index = 4, #ARGV do
  if redis.call('ZSCORE', KEYS[2], ARGV[index]) then
    redis.call('ZADD', KEYS[2], ends, ARGV[index])
  else
    reply[#reply + 1] = ARGV[index]
  end
end
sweep(KEYS[2], string.sub(KEYS[1], 1, -6), epoch)
return reply
