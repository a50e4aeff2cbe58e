-- What the brakes of all nodes know of each other.
-- KEYS: users that have changed, by time (ms); kept values, by time (ms).
-- ARGV: the window (ms), how long keys are kept (ms), the most kept values, the most of each list in an answer, since
-- when changed users and kept values are read (ms), how many have changed, are kept, are kept no more; these.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window, life = tonumber(ARGV[1]), ARGV[2]
local at = 9
local function each(count, what)
  for index = at + 1, at + tonumber(count) do what(ARGV[index]) end
  at = at + tonumber(count)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
-- The clock was put back.
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + window, '+inf')
each(ARGV[7], function(id) redis.call('ZADD', KEYS[1], 'NX', now, id) end)
local room = tonumber(ARGV[3]) - redis.call('ZCARD', KEYS[2])
each(ARGV[8], function(kept)
  if room > 0 then room = room - redis.call('ZADD', KEYS[2], 'NX', now, kept) end
end)
each(ARGV[9], function(kept) redis.call('ZREM', KEYS[2], kept) end)
redis.call('PEXPIRE', KEYS[1], window)
redis.call('PEXPIRE', KEYS[2], life)
local function since(key, first)
  if tonumber(first) > now then first = '0' end
  return redis.call('ZRANGEBYSCORE', key, first, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
end
local changed, kept = since(KEYS[1], ARGV[5]), since(KEYS[2], ARGV[6])
return {string.format('%.0f', now), redis.call('ZCARD', KEYS[2]), changed, kept}
