-- Put a running request back that the server no longer knows: it lost its memory, or the lease ran out.
-- KEYS: epoch, leases, record, orphan, meters...
-- ARGV: epoch, is sure, id, lease us, tokens, nano, then for each meter: kind, limit, soft, ends ms
-- Gives: 'epoch' | 'ok'
local epoch, tokens, nano = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[6])
if epoch_differs(KEYS[1], epoch, ARGV[2] == '1') then return { 'epoch' } end
if redis.call('EXISTS', KEYS[3]) == 1 then return { 'ok' } end
local charged = redis.call('HMGET', KEYS[4], 't', 'n')
local counters = {}
for index = 1, #KEYS - 4 do
  local at = 7 + (index - 1) * 4
  local key, kind, limit, soft = KEYS[index + 4], ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  local ends_ms = ARGV[at + 3]
  counters[index] = { key, kind, limit, ends_ms, soft }
  if is_window(kind) then
    if charged[1] then spend(key, ends_ms, -amount(kind, tonumber(charged[1]), tonumber(charged[2]))) end
    if not soft then hold(key, kind, limit, ends_ms, amount(kind, tokens, nano), epoch) end
  elseif kind == 's' then
    hold(key, kind, limit, ends_ms, 1, epoch)
  end
end
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[3], 'c', cmsgpack.pack(counters), 't', text(tokens), 'n', text(nano))
redis.call('ZADD', KEYS[2], text(now + tonumber(ARGV[4])), ARGV[3])
return { 'ok' }
