-- Which commands the store's user may run, and on which keys. KEYS: a key that is not used otherwise.
-- ARGV: commands, where KEY stands for it. Returns for each 0 (it may), 1 (not the command), 2 (not the key).
local found = {}
for at = 1, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[at], '%S+') do
    words[#words + 1] = word == 'KEY' and KEYS[1] or word
  end
  local reply = redis.pcall(unpack(words))
  local text = type(reply) == 'table' and reply.err or ''
  found[at] = 0
  -- Redis 7.0, and the words of later ones and of Valkey.
  if string.find(text, "can't access", 1, true) or string.find(string.lower(text), 'permissions to access', 1, true) then
    found[at] = 2
  elseif string.find(text, "can't run this command", 1, true) or string.find(text, 'NOPERM', 1, true) then
    found[at] = 1
  end
end
redis.pcall('DEL', KEYS[1])
return found
