-- mark, users, passwords, highest id ever given -> 1: the database is whole; 0: it was changed meanwhile
-- mark -> 1: it was read without interference; 0: there may have been some
local mark, whole = redis.call('GET', p .. 'migrating'), nil
if ARGV[2] then
    whole = mark == 'in ' .. ARGV[1]
        and redis.call('HLEN', p .. 'users') == tonumber(ARGV[2])
        and redis.call('HLEN', p .. 'passwords') == tonumber(ARGV[3])
    if whole then
        redis.call('SET', p .. 'last-id', ARGV[4])
    end
else
    whole = mark == 'out ' .. ARGV[1]
end
if whole then
    redis.call('DEL', p .. 'migrating')
end
return whole and 1 or 0
