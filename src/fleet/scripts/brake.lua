-- What the brakes of all nodes know of each other.
-- KEYS: users that have changed, by time (ms); kept values, by time (ms); what each member says of itself.
-- ARGV: its id, how many users it knows, the prefix of members' keys, the window (ms), how long keys are kept (ms), the
-- most kept values, the most of each list in an answer, since when changed users and kept values are read (ms), how
-- many have changed, are kept, are kept no more; these.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window, life = tonumber(ARGV[4]), ARGV[5]
local at = 12
local function each(count, what)
  for index = at + 1, at + tonumber(count) do what(ARGV[index]) end
  at = at + tonumber(count)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
each(ARGV[10], function(id) redis.call('ZADD', KEYS[1], 'NX', now, id) end)
local room = tonumber(ARGV[6]) - redis.call('ZCARD', KEYS[2])
each(ARGV[11], function(kept)
  if room > 0 then room = room - redis.call('ZADD', KEYS[2], 'NX', now, kept) end
end)
each(ARGV[12], function(kept) redis.call('ZREM', KEYS[2], kept) end)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local most, members = 0, redis.call('HGETALL', KEYS[3])
for index = 1, #members, 2 do
  if redis.call('EXISTS', ARGV[3] .. members[index]) == 1 or members[index] == ARGV[1] then
    most = math.max(most, tonumber(members[index + 1]))
  else
    redis.call('HDEL', KEYS[3], members[index])
  end
end
redis.call('PEXPIRE', KEYS[1], window)
redis.call('PEXPIRE', KEYS[2], life)
redis.call('PEXPIRE', KEYS[3], life)
local function since(key, first)
  if tonumber(first) > now then first = '0' end
  return redis.call('ZRANGEBYSCORE', key, first, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[7])
end
local changed, kept = since(KEYS[1], ARGV[8]), since(KEYS[2], ARGV[9])
return {string.format('%.0f', now), most, redis.call('ZCARD', KEYS[2]), changed, kept}
