-- End a request: replace what it holds by what it used. A second call does nothing.
-- KEYS: epoch, leases, record, orphan
-- ARGV: epoch, is sure, id, tokens, nano
-- Gives: 'epoch' | 'ok', rooms... (none where not all are known) | 'unknown'
local epoch = ARGV[1]
if epoch_differs(KEYS[1], epoch, ARGV[2] == '1') then return { 'epoch' } end
local used_tokens, used_nano = tonumber(ARGV[4]), tonumber(ARGV[5])
local record = redis.call('HMGET', KEYS[3], 'c', 't', 'n')
if record[1] then
  local counters = cmsgpack.unpack(record[1])
  release(counters, tonumber(record[2]), tonumber(record[3]), used_tokens, used_nano, epoch)
  redis.call('DEL', KEYS[3])
  redis.call('ZREM', KEYS[2], ARGV[3])
  local reply = { 'ok' }
  for index, counter in ipairs(counters) do
    local left = room(counter[1], counter[2], tonumber(counter[3]), epoch)
    if not left then return { 'ok' } end -- the server lost its memory, and nobody has asked the ledger again
    reply[index + 1] = string.format('%.6f', left)
  end
  return reply
end
record = redis.call('HMGET', KEYS[4], 'c', 't', 'n')
if not record[1] then return { 'unknown' } end
for _, counter in ipairs(cmsgpack.unpack(record[1])) do
  if is_window(counter[2]) then
    local charged = amount(counter[2], tonumber(record[2]), tonumber(record[3]))
    spend(counter[1], counter[4], amount(counter[2], used_tokens, used_nano) - charged)
  end
end
redis.call('DEL', KEYS[4])
return { 'ok' }
