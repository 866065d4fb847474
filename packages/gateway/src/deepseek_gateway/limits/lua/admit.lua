-- Let a request in: ask all meters, then charge all, or none.
-- KEYS: epoch, leases, record, meters...
-- ARGV: epoch, is sure, id, lease us, deadline us, wanted tokens, least tokens, wanted nano, least nano,
--       then for each meter: kind, limit, soft, ends ms, what the ledger says or ''
-- Gives: 'epoch' | 'late' | 'wait', us | 'load', indices... | 'no', rooms... | 'ok', tokens, nano, rooms...
local epoch, id = ARGV[1], ARGV[3]
if now > tonumber(ARGV[5]) then return { 'late' } end
if epoch_differs(KEYS[1], epoch, ARGV[2] == '1') then return { 'epoch' } end
local prefix = string.sub(KEYS[1], 1, -6)
sweep(KEYS[2], prefix, epoch)

local count = #KEYS - 3
local function meter(index)
  local at = 10 + (index - 1) * 5
  return KEYS[index + 3], ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1', ARGV[at + 3], ARGV[at + 4]
end

local _, ready = epoch_parts(epoch)
local missing, rooms = { 'load' }, {}
for index = 1, count do
  local key, kind, limit, _, ends_ms, init = meter(index)
  if now < ready and (kind == 's' or is_window(kind)) then
    return { 'wait', text(ready - now) }
  end
  rooms[index] = room(key, kind, limit, epoch)
  if rooms[index] == nil then
    if init == '' then
      missing[#missing + 1] = index
    else
      local beside = tonumber(redis.call('HGET', key, 'p')) or 0
      redis.call('HSET', key, 'u', text(tonumber(init) + beside))
      redis.call('HDEL', key, 'p')
      redis.call('PEXPIREAT', key, ends_ms)
      rooms[index] = room(key, kind, limit, epoch)
    end
  end
end
if #missing > 1 then return missing end

local tokens, nano = tonumber(ARGV[6]), tonumber(ARGV[8])
local least = { tonumber(ARGV[7]), tonumber(ARGV[9]) }
local fits = true
for index = 1, count do
  local _, kind, _, soft = meter(index)
  if not soft then
    local free = math.floor(rooms[index] + 0.000001)
    if free < amount(kind, least[1], least[2]) then fits = false end
    if kind == 't' or kind == 'w' then tokens = math.min(tokens, free) end
    if kind == 'm' then nano = math.min(nano, free) end
  end
end
local reply
if fits then
  local counters = {}
  for index = 1, count do
    local key, kind, limit, soft, ends_ms = meter(index)
    local by = is_held(kind, soft) and amount(kind, tokens, nano) or 0
    hold(key, kind, limit, ends_ms, by, epoch)
    rooms[index] = rooms[index] - by
    counters[index] = { key, kind, limit, ends_ms, soft }
  end
  redis.call('HSET', KEYS[3], 'c', cmsgpack.pack(counters), 't', text(tokens), 'n', text(nano))
  redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[4])), id)
  reply = { 'ok', text(tokens), text(nano) }
else
  reply = { 'no' }
end
for index = 1, count do
  reply[#reply + 1] = string.format('%.6f', rooms[index])
end
return reply
