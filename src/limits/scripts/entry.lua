-- Charges an entry that is bound now, or a user at a prefix with earlier logins. KEYS: the account.
-- ARGV: every, whether it is an entry, rule.
local every, of_user = tonumber(ARGV[1]), rule(3)
local account = read(KEYS[1])
if ARGV[2] == '1' then
  step(account, every, of_user)
  charge(account, 0, of_user)
  account.due = now
else
  charge(account, 0, of_user)
end
write(account, every)
return {now, account.failures, account.credited, account.due}
