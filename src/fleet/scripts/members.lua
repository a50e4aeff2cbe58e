-- The records of the living members. KEYS: the index of members. ARGV: the prefix of members' keys, the most members.
local members = {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  local record = redis.call('GET', ARGV[1] .. id)
  if record then
    members[#members + 1] = id
    members[#members + 1] = record
  end
end
return members
