-- Writes marks; of two for the same field the later version stays.
-- KEYS: marks, their times, their ends.
-- ARGV: the most marks, the most when an event is added, and for each its field, version (us), end (ms), what it
-- replaces (0 what is earlier, 1 itself too, 2 anything), whether it is an event (0, 1), sealed body.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local written = 0
for at = 3, #ARGV, 6 do
  local field, version, ends = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local known = redis.call('HGET', KEYS[1], field)
  local newest = known and tonumber(string.match(known, '^(%d+) ')) or -1
  local replaces = tonumber(ARGV[at + 3])
  local most = tonumber(ARGV[ARGV[at + 4] == '1' and 2 or 1])
  local fits = known or redis.call('HLEN', KEYS[1]) < most
  if fits and ends * 1000 > now and (newest < version or replaces == 1 and newest == version or replaces == 2) then
    redis.call('HSET', KEYS[1], field, ARGV[at + 1] .. ' ' .. ARGV[at + 2] .. ' ' .. ARGV[at + 5])
    redis.call('ZADD', KEYS[2], string.format('%.0f', now), field)
    redis.call('ZADD', KEYS[3], ARGV[at + 2], field)
    written = written + 1
  end
end
return written
