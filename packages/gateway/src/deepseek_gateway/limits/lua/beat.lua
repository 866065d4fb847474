-- A gateway's sign of life: the server's clock, which memory of the server this is, and how many gateways there are.
-- KEYS: epoch, nodes
-- ARGV: node, name of a new memory, us until a new memory takes requests, 1 if an older memory is known to be lost
-- Gives: now, epoch, number of nodes
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[2] .. '|' .. text(now) .. '|' .. text(now + tonumber(ARGV[3])) .. '|' .. ARGV[4]
  redis.call('SET', KEYS[1], epoch)
end
redis.call('ZADD', KEYS[2], text(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now - 30000000))
return { text(now), epoch, text(redis.call('ZCARD', KEYS[2])) }
