-- Hold more for a running request, as much as there is.
-- KEYS: epoch, leases, record, meters...
-- ARGV: epoch, is sure, id, lease us, deadline us, tokens, nano, then for each meter: kind, limit, soft, ends ms
-- Gives: 'epoch' | 'late' | 'unknown' | 'ok', tokens, nano, rooms...
local epoch, id = ARGV[1], ARGV[3]
if now > tonumber(ARGV[5]) then return { 'late' } end
if epoch_differs(KEYS[1], epoch, ARGV[2] == '1') then return { 'epoch' } end
if redis.call('EXISTS', KEYS[3]) == 0 then return { 'unknown' } end

local tokens, nano = tonumber(ARGV[6]), tonumber(ARGV[7])
local rooms = {}
for index = 1, #KEYS - 3 do
  local at = 8 + (index - 1) * 4
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  rooms[index] = room(KEYS[index + 3], kind, limit, epoch)
  if ARGV[at + 2] == '0' then
    local free = math.max(0, math.floor((rooms[index] or 0) + 0.000001))
    if kind == 't' or kind == 'w' then tokens = math.min(tokens, free) end
    if kind == 'm' then nano = math.min(nano, free) end
  end
end
local reply = { 'ok', text(tokens), text(nano) }
for index = 1, #KEYS - 3 do
  local at = 8 + (index - 1) * 4
  local kind, soft = ARGV[at], ARGV[at + 2] == '1'
  local by = (kind == 'r' or kind == 's' or soft) and 0 or amount(kind, tokens, nano)
  hold(KEYS[index + 3], kind, tonumber(ARGV[at + 1]), ARGV[at + 3], by, epoch)
  reply[#reply + 1] = string.format('%.6f', (rooms[index] or 0) - by)
end
redis.call('HINCRBY', KEYS[3], 't', text(tokens))
redis.call('HINCRBY', KEYS[3], 'n', text(nano))
redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[4])), id)
return reply
