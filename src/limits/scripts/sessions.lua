-- One member's sessions of a user; returns those of the other members that live. KEYS: users that share a key.
-- ARGV: the member, its sessions, the prefix of members' keys, how long the key lasts without a new user (ms), the user.
-- What is counted for a user is a text, `member=count` for each. With a key of its own it takes four times the memory.
local elsewhere, record = 0, {}
for member, count in string.gmatch(redis.call('HGET', KEYS[1], ARGV[5]) or '', '(%x+)=(%d+)') do
  if member ~= ARGV[1] and redis.call('EXISTS', ARGV[3] .. member) == 1 then
    elsewhere = elsewhere + tonumber(count)
    record[#record + 1] = member .. '=' .. count
  end
end
if ARGV[2] ~= '0' then record[#record + 1] = ARGV[1] .. '=' .. ARGV[2] end
if #record == 0 then
  redis.call('HDEL', KEYS[1], ARGV[5])
elseif redis.call('HSET', KEYS[1], ARGV[5], table.concat(record, ' ')) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {elsewhere}
