-- three looks, max_users, max_id, name, password hash or "" -> the new id, or what check_sign_up says
local looks = {ARGV[1], ARGV[2], ARGV[3]}
local reason = why_no_sign_up(looks, ARGV[4], ARGV[5])
if reason then
    return reason
end
local id = redis.call('INCR', p .. 'last-id')
redis.call('HSET', p .. 'users', id, ARGV[6])
for _, look in ipairs(looks) do
    redis.call('HSET', p .. 'names', look, id)
end
if ARGV[7] ~= '' then
    redis.call('HSET', p .. 'passwords', id, ARGV[7])
end
return id
