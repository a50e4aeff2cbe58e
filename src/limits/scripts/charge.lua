-- Charges a guess to its user, its prefix and the names refused there, all or none.
-- KEYS: the name, the user at this prefix, the prefix, the names refused there, the networks of the name, and the entry
-- if it is known.
-- ARGV: every, known, the network, how long it is known, the name or '', how long it counts, how many are kept;
-- 8: rule of the user; 13: rule of the prefix; 18: rule of names.
local every, known, name, kept = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[5], tonumber(ARGV[7])
local of_user, of_prefix, of_names = rule(8), rule(13), rule(18)
if not known then
  each_network(KEYS[5], function(network, seen)
    -- Also if the clock was put back since.
    known = known or network == ARGV[3] and math.abs(now - seen * 1000) < tonumber(ARGV[4])
  end)
end
local user, prefix = read(known and KEYS[2] or KEYS[1]), read(KEYS[3])
local user_delay, prefix_delay, names_delay = queued(user.due, step(user, every, of_user)), 0, 0
local at_limit = not known and of_user.limit >= 0 and user.failures >= of_user.limit
local counts_name, others, is_new = not known and name ~= '', 0, false
if not known then prefix_delay = queued(prefix.due, step(prefix, every, of_prefix)) end
if counts_name then
  -- 'due' is a member, too: when the last delayed attempt is due.
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[6]))
  redis.call('ZREMRANGEBYSCORE', KEYS[4], now + tonumber(ARGV[6]), '+inf')
  local due = redis.call('ZSCORE', KEYS[4], 'due')
  is_new = not redis.call('ZSCORE', KEYS[4], name)
  others = redis.call('ZCARD', KEYS[4]) - (due and 1 or 0) - (is_new and 0 or 1)
  due = due and tonumber(due) or now
  if due > now + 5000 then due = now end
  if others >= of_names.free then
    names_delay = queued(due, growing(of_names.first, others - of_names.free, of_names.most))
  end
end
local refused = of_user.enforced and (at_limit or user_delay > of_user.most)
  or of_prefix.enforced and prefix_delay > of_prefix.most
  or counts_name and of_names.enforced and names_delay > of_names.most
if not refused then
  charge(user, user_delay, of_user)
  charge(prefix, prefix_delay, of_prefix)
  if counts_name then
    if others >= kept then redis.call('ZREMRANGEBYRANK', KEYS[4], 0, 0) end
    redis.call('ZADD', KEYS[4], now, name)
    if names_delay > 0 then redis.call('ZADD', KEYS[4], now + math.min(names_delay, of_names.most), 'due') end
    redis.call('PEXPIRE', KEYS[4], tonumber(ARGV[6]) + 10000)
  end
end
write(user, every)
write(prefix, every)
local answer = {known and 1 or 0, at_limit and 1 or 0, user_delay, prefix_delay, names_delay, refused and 0 or 1,
  is_new and 1 or 0, user.generation, prefix.generation, now,
  user.failures, user.credited, user.due, prefix.failures, prefix.credited, prefix.due}
if KEYS[6] then
  local entry = read(KEYS[6])
  answer[17], answer[18], answer[19] = entry.failures, entry.credited, entry.due
end
return answer
