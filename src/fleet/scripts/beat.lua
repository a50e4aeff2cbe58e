-- A member says that it lives, and reads who lives and which marks have changed.
-- KEYS: its key, the index of members, marks, their times, their ends, the epoch.
-- ARGV: its id, its record, how long it lives (ms), what it has read (us; its epoch), a new epoch, the prefix of
-- members' keys, the most members, the most marks.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now_ms, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms - ARGV[3])
-- The clock was put back.
redis.call('ZREMRANGEBYSCORE', KEYS[2], now_ms + ARGV[3], '+inf')
local ended = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now_ms, 'LIMIT', 0, 100)
if #ended > 0 then
  redis.call('HDEL', KEYS[3], unpack(ended))
  redis.call('ZREM', KEYS[4], unpack(ended))
  redis.call('ZREM', KEYS[5], unpack(ended))
end
redis.call('SET', KEYS[6], ARGV[6], 'NX')
local epoch = redis.call('GET', KEYS[6])
local since = tonumber(ARGV[4])
if epoch ~= ARGV[5] or since > now then since = 0 end
local members = {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[2], 0, ARGV[8] - 1)) do
  local record = redis.call('GET', ARGV[7] .. id)
  if record then
    members[#members + 1] = id
    members[#members + 1] = record
  end
end
local marks = {}
local fields = redis.call('ZRANGEBYSCORE', KEYS[4], since, '+inf', 'LIMIT', 0, ARGV[9])
if #fields > 0 then
  local values = redis.call('HMGET', KEYS[3], unpack(fields))
  for at, field in ipairs(fields) do
    if values[at] then
      marks[#marks + 1] = field
      marks[#marks + 1] = values[at]
    end
  end
end
local newest = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2] or '0'
local count = redis.call('ZCARD', KEYS[4])
return {tostring(time[1]), tostring(time[2]), epoch, since == 0 and 1 or 0, newest .. ' ' .. count, members, marks}
