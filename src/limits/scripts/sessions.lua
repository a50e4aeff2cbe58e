-- One member's sessions of a user; returns those of the other members that live. KEYS: the user.
-- ARGV: the member, its sessions, the prefix of members' keys, how long the record lasts without a write (ms).
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
local elsewhere = 0
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  if all[at] ~= ARGV[1] then
    if redis.call('EXISTS', ARGV[3] .. all[at]) == 1 then
      elsewhere = elsewhere + (tonumber(all[at + 1]) or 0)
    else
      redis.call('HDEL', KEYS[1], all[at])
    end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {elsewhere}
