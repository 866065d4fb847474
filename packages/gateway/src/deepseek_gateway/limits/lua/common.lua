-- What all steps share. A step is one atomic script; times are microseconds of the server's own clock.
--
-- Keys of a tag (an organisation), which a cluster keeps in one slot:
--   dsg:{tag}:epoch       which memory of the server this is; another one, or none, means that it lost its memory
--   dsg:{tag}:leases      sorted set: request id -> when its lease runs out
--   dsg:{tag}:r:<id>      what a running request holds:  c = counters, t = tokens, n = nano-units
--   dsg:{tag}:o:<id>      what a request whose lease ran out was charged
--   dsg:{tag}:m:<counter> a meter: r = theoretical arrival time; t = {l, a}; s = running; w = {u, h}
--
-- Kinds: r requests a minute, t tokens a minute, s slots, w tokens of a window, m money of a window.

local MINUTE = 60000000
local ORPHANS_KEPT_MS = 8 * 86400 * 1000

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(number)
  return string.format('%.0f', number)
end

-- 'epoch' when the caller believes in another memory than the server has; `is_sure` callers have just asked.
local function epoch_differs(key, epoch, is_sure)
  local current = redis.call('GET', key)
  if current == epoch then return false end
  if not is_sure then return true end
  redis.call('SET', key, epoch)
  return false
end

-- The moment of birth, when requests may come, and whether buckets begin empty: `id|born|ready|strict`.
local function epoch_parts(epoch)
  local born, ready, strict = string.match(epoch, '^[^|]*|(%d+)|(%d+)|(%d)$')
  return tonumber(born), tonumber(ready), strict == '1'
end

local function amount(kind, tokens, nano)
  if kind == 'r' or kind == 's' then return 1 end
  if kind == 'm' then return nano end
  return tokens
end

-- A meter's room; nil for a window that nobody has filled from the ledger yet.
local function room(key, kind, limit, epoch)
  local born, _, strict = epoch_parts(epoch)
  if kind == 'r' then
    local at = tonumber(redis.call('GET', key)) or (strict and born + MINUTE or 0)
    return (MINUTE - math.max(0, at - now)) * limit / MINUTE
  elseif kind == 't' then
    local state = redis.call('HMGET', key, 'l', 'a')
    local level, at = tonumber(state[1]), tonumber(state[2])
    if not level then
      level, at = strict and 0 or limit, strict and born or now
    end
    return math.min(limit, level + math.max(0, now - at) * limit / MINUTE)
  elseif kind == 's' then
    return limit - (tonumber(redis.call('GET', key)) or 0)
  end
  local state = redis.call('HMGET', key, 'u', 'h')
  if not state[1] then return nil end
  return limit - tonumber(state[1]) - (tonumber(state[2]) or 0)
end

-- Hold `by`; below zero gives back.
local function hold(key, kind, limit, ends_ms, by, epoch)
  if by == 0 then return end
  if kind == 'r' then
    local born, _, strict = epoch_parts(epoch)
    local at = math.max(now, tonumber(redis.call('GET', key)) or (strict and born + MINUTE or 0))
    redis.call('SET', key, text(at + by * MINUTE / limit), 'PX', 120000)
  elseif kind == 't' then
    local level = math.min(limit, room(key, kind, limit, epoch) - by)
    redis.call('HSET', key, 'l', string.format('%.6f', level), 'a', text(now))
    redis.call('PEXPIRE', key, 120000 + math.max(0, math.ceil(-level * 60000 / limit)))
  elseif kind == 's' then
    if redis.call('INCRBY', key, by) <= 0 then redis.call('DEL', key) end
  else
    redis.call('HINCRBY', key, 'h', text(by))
    redis.call('PEXPIREAT', key, ends_ms)
  end
end

-- Spend on a window. Where nobody has filled it yet, it waits beside what the ledger will say.
local function spend(key, ends_ms, by)
  local field = redis.call('HEXISTS', key, 'u') == 1 and 'u' or 'p'
  redis.call('HINCRBY', key, field, text(by))
  redis.call('PEXPIREAT', key, ends_ms)
end

local function is_window(kind)
  return kind == 'w' or kind == 'm'
end

-- Whether running requests hold something of a meter: soft ones count only what was used.
local function is_held(kind, soft)
  return not soft or kind == 'r' or kind == 's'
end

-- Replace what a request holds by what it used.
local function release(counters, held_tokens, held_nano, used_tokens, used_nano, epoch)
  for _, counter in ipairs(counters) do
    local key, kind, limit, ends_ms, soft = counter[1], counter[2], tonumber(counter[3]), counter[4], counter[5]
    local held, used = amount(kind, held_tokens, held_nano), amount(kind, used_tokens, used_nano)
    if not is_held(kind, soft) then held = 0 end
    if kind == 't' then
      hold(key, kind, limit, ends_ms, used - held, epoch)
    elseif kind == 's' then
      hold(key, kind, limit, ends_ms, -1, epoch)
    elseif is_window(kind) then
      hold(key, kind, limit, ends_ms, -held, epoch)
      spend(key, ends_ms, used)
    end
  end
end

-- End requests whose lease ran out. Nobody knows what they used, so windows are charged all that they held; their
-- journal corrects it when their gateway comes back.
local function sweep(leases, prefix, epoch)
  local gone = redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, 100)
  for _, id in ipairs(gone) do
    local record = redis.call('HMGET', prefix .. 'r:' .. id, 'c', 't', 'n')
    if record[1] then
      local tokens, nano = tonumber(record[2]), tonumber(record[3])
      release(cmsgpack.unpack(record[1]), tokens, nano, tokens, nano, epoch)
      redis.call('RENAME', prefix .. 'r:' .. id, prefix .. 'o:' .. id)
      redis.call('PEXPIRE', prefix .. 'o:' .. id, ORPHANS_KEPT_MS)
    end
    redis.call('ZREM', leases, id)
  end
  return #gone
end
